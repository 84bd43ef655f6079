// Draws the film, its maps and boxes, and sends the keys. The kernel sends what is drawn:
// film (JPG), maps (float32), boxes and text; the blend is that of chexnet.figures.blend.

const FIELDS = "input:not([type=checkbox]), select, textarea"; // keep all their keys
const SLIDER = ".noUi-handle";
const SLIDER_KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
const FINEST = 512; // pixels at which the heat map is colored; the film has its own
const LINES = 160; // positions at which the contour is traced
const LARGEST_ZOOM = 16;
const REST = 100; // milliseconds without a change, before what keys will show is asked for
const LIKE = { ArrowDown: "ArrowRight", ArrowUp: "ArrowLeft" };
const WINDOW = { level: 127.5, width: 255 };

const HELP = [
  ["← → ↑ ↓", "previous, next image"], ["Page Up, Page Down", "10 images"],
  ["Home, End", "first, last image"], ["1 2 3 4 5", "all, TP, FN, TN, FP"],
  ["b", "reference boxes"], ["h", "heat map"], ["i", "invert"], ["c", "CLAHE"], ["f", "flag"],
  ["+ - 0", "zoom in, out, whole image"], ["w", "window of the file"], ["?", "this list"],
  ["wheel", "zoom (after a click on the image)"], ["drag", "move the zoomed image"],
  ["right or Shift drag", "window (left-right) and level (up-down)"], ["double click", "zoom and window as at first"],
];

const PARTS = `
  <div class="chexnet-view" tabindex="0">
    <div class="panes">
      <figure><canvas class="film" role="img"></canvas><figcaption></figcaption></figure>
      <figure><canvas class="overlay" role="img"></canvas><figcaption></figcaption></figure>
      <div class="below">
        <canvas class="colors" role="img" aria-label="color bar"></canvas>
        <span class="zoom"></span><span class="cursor"></span>
      </div>
    </div>
    <div class="side"></div>
    <table class="help" hidden>${HELP.map(([key, what]) => `<tr><td><kbd>${key}</kbd></td><td>${what}</td></tr>`).join("")}</table>
    <div class="busy">computing …</div>
  </div>`;

const floats = (data) => {
  const bytes = data instanceof DataView ? data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength) : data;
  return new Float32Array(bytes);
};
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// Bilinear, as chexnet.cam.upsample_map: a value is that of its cell's center; x, y from 0 to 1.
function valueAt(pane, x, y) {
  const [rows, columns] = pane.shape;
  const c = clamp(x * columns - 0.5, 0, columns - 1), r = clamp(y * rows - 0.5, 0, rows - 1);
  const c0 = Math.floor(c), r0 = Math.floor(r);
  const c1 = Math.min(c0 + 1, columns - 1), r1 = Math.min(r0 + 1, rows - 1);
  const at = (row, column) => pane.values[row * columns + column];
  const upper = at(r0, c0) + (at(r0, c1) - at(r0, c0)) * (c - c0);
  const lower = at(r1, c0) + (at(r1, c1) - at(r1, c0)) * (c - c0);
  return upper + (lower - upper) * (r - r0);
}

// The film in gray, after window, level and inversion, at its full size.
function graded(film, { level, width }, invert) {
  if (width === WINDOW.width && level === WINDOW.level && !invert) return film.bitmap;
  const table = new Uint32Array(256);
  for (let gray = 0; gray < 256; gray++) {
    const shown = clamp(Math.round(((gray - level) / width + 0.5) * 255), 0, 255);
    const value = invert ? 255 - shown : shown;
    table[gray] = (255 << 24) | (value << 16) | (value << 8) | value;
  }
  const image = new ImageData(film.width, film.height);
  const pixels = new Uint32Array(image.data.buffer);
  const values = grays(film);
  for (let at = 0; at < pixels.length; at++) pixels[at] = table[values[at]];
  return picture(image);
}

// The colors of a map above its threshold, with their opacity.
function colored(pane, film, colors, opacity, rise) {
  const share = Math.min(1, FINEST / Math.max(film.width, film.height));
  const width = Math.round(film.width * share), height = Math.round(film.height * share);
  const table = new Uint32Array(256);
  for (let at = 0; at < 256; at++) {
    const alpha = Math.round(255 * opacity * (at / 255) ** rise);
    table[at] = (alpha << 24) | (colors[3 * at + 2] << 16) | (colors[3 * at + 1] << 8) | colors[3 * at];
  }
  const [rows, columns] = pane.shape;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const least = Math.max(pane.threshold, 0);
  const c0 = new Int32Array(width), part = new Float32Array(width);
  for (let x = 0; x < width; x++) {
    const c = clamp(((x + 0.5) / width) * columns - 0.5, 0, columns - 1);
    c0[x] = Math.min(Math.floor(c), Math.max(columns - 2, 0));
    part[x] = c - c0[x];
  }
  const step = columns > 1 ? 1 : 0;
  const line = new Float32Array(columns);
  for (let y = 0; y < height; y++) {
    const r = clamp(((y + 0.5) / height) * rows - 0.5, 0, rows - 1);
    const r0 = Math.floor(r), r1 = Math.min(r0 + 1, rows - 1);
    for (let c = 0; c < columns; c++) {
      const upper = pane.values[r0 * columns + c];
      line[c] = upper + (pane.values[r1 * columns + c] - upper) * (r - r0);
    }
    for (let x = 0; x < width; x++) {
      const value = line[c0[x]] + (line[c0[x] + step] - line[c0[x]]) * part[x];
      if (value > 0 && value >= least) {
        pixels[y * width + x] = table[Math.min(255, Math.floor((value / pane.scale) * 256))];
      }
    }
  }
  return picture(image);
}

// The contour at the threshold, by marching squares; x and y from 0 to 1.
function contour(pane) {
  const path = new Path2D();
  const at = (n) => (n + 0.5) / LINES;
  const values = new Float32Array(LINES * LINES);
  for (let y = 0; y < LINES; y++)
    for (let x = 0; x < LINES; x++) values[y * LINES + x] = valueAt(pane, at(x), at(y)) - pane.threshold;
  for (let y = 0; y + 1 < LINES; y++) {
    for (let x = 0; x + 1 < LINES; x++) {
      const first = y * LINES + x;
      const count = (values[first] >= 0) + (values[first + 1] >= 0) + (values[first + LINES] >= 0) + (values[first + LINES + 1] >= 0);
      if (count === 0 || count === 4) continue;
      const corners = [values[first], values[first + 1], values[first + LINES + 1], values[first + LINES]];
      const inside = corners.map((value) => value >= 0);
      const places = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const crossings = [];
      for (let one = 0; one < 4; one++) {
        const next = (one + 1) % 4;
        if (inside[one] === inside[next]) continue;
        const share = corners[one] / (corners[one] - corners[next]);
        const [a, b] = [places[one], places[next]];
        crossings.push([at(a[0] + (b[0] - a[0]) * share), at(a[1] + (b[1] - a[1]) * share)]);
      }
      for (let one = 0; one + 1 < crossings.length; one += 2) {
        path.moveTo(...crossings[one]);
        path.lineTo(...crossings[one + 1]);
      }
    }
  }
  return path;
}

function picture(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

async function decoded(bytes) {
  if (!bytes || !bytes.byteLength) return null;
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  return { bytes, bitmap, width: bitmap.width, height: bitmap.height };
}

// The gray values of a film, read when they are first needed.
function grays(film) {
  if (film.gray) return film.gray;
  const context = new OffscreenCanvas(film.width, film.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(film.bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, film.width, film.height).data;
  film.gray = new Uint8Array(film.width * film.height);
  for (let at = 0; at < film.gray.length; at++) film.gray[at] = rgba[4 * at];
  return film.gray;
}

function same(one, other) {
  if (one === other) return true;
  const [a, b] = [one, other].map((data) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return a.length === b.length && a.every((byte, at) => byte === b[at]);
}

function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function render({ model, el }) {
  el.innerHTML = PARTS;
  const find = (selector) => el.querySelector(selector);
  const view = find(".chexnet-view"), side = find(".side"), help = find(".help");
  const canvases = { left: find("canvas.film"), right: find("canvas.overlay") };
  const bar = find("canvas.colors");
  const look = model.get("look");

  let film = null; // decoded
  let shown = {}; // what the kernel sent last, with `film`
  let zoom = { times: 1, x: 0.5, y: 0.5 }; // x, y: the film's point in the middle of the canvas
  let gray = { ...WINDOW };
  let cursor = null; // the point of the film under the mouse
  const kept = {}; // pictures by name, with what they were made from

  // A picture is made again only if something that it shows has changed.
  function once(name, from, make) {
    const unchanged = kept[name] && kept[name].from.every((one, at) => one === from[at]);
    if (!unchanged) kept[name] = { from, made: make() };
    return kept[name].made;
  }

  function pane(name, sent) {
    const before = shown[name];
    if (before && before.sent === sent) return before;
    return { ...sent, sent, values: sent.map ? floats(sent.map) : null };
  }

  function latest() {
    const of = (name) => (name in soon ? soon[name] : model.get(name));
    const names = ["boxes", "opacity", "heat", "show_boxes", "invert", "side", "name"];
    const state = Object.fromEntries(names.map((name) => [name, of(name)]));
    const colors = model.get("colors");
    state.colors = shown.colors || new Uint8Array(colors.buffer, colors.byteOffset, colors.byteLength);
    return { ...state, left: pane("left", of("left")), right: pane("right", of("right")), bytes: of("film") };
  }

  // What keys will show, sent ahead while nothing changes; with a change the kernel takes it back.
  let ahead = {}, resting = null;
  let soon = {}; // of the key that was pressed last, until the kernel's own answer
  function onAhead() {
    ahead = model.get("ahead");
    for (const known of Object.values(ahead)) known.decoded = decoded(known.film);
  }
  const onAnswer = () => (soon = {});
  function onChange() {
    update();
    clearTimeout(resting);
    resting = setTimeout(() => Object.keys(ahead).length || model.send({ key: "ahead" }), REST);
  }

  // Film, maps and text change together, once the film is decoded; the latest waits meanwhile.
  let decoding = false, waiting = false;
  async function update() {
    if (decoding) {
      waiting = true;
      return;
    }
    const state = latest();
    if (!film || !same(film.bytes, state.bytes)) {
      decoding = true;
      const next = await (soon.decoded || decoded(state.bytes));
      decoding = false;
      if (film && next && (film.width !== next.width || film.height !== next.height)) wholeImage();
      film = next;
    }
    if (shown.side !== state.side) side.innerHTML = state.side; // made by chexnet.explorer, which escapes its text
    shown = state;
    draw();
    if (waiting) {
      waiting = false;
      update();
    }
  }

  let asked = false;
  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      for (const name of ["left", "right"]) drawPane(name);
      drawBar();
      drawWords();
      // What is on the screen now, for tests and for benchmarks/bench_explorer.py.
      const threshold = shown.right ? shown.right.threshold : "";
      const parts = [shown.name, shown.opacity, shown.heat, shown.show_boxes, threshold, shown.invert];
      view.dataset.shown = [...parts, film ? film.bytes.byteLength : 0, gray.width, zoom.times, zoom.x].join(" ");
      view.dispatchEvent(new CustomEvent("chexnet-drawn"));
    });
  }

  // Pixels of the canvas for one pixel of the film, and where the film's corner is.
  function place(canvas) {
    const size = Math.min(canvas.width / film.width, canvas.height / film.height) * zoom.times;
    return { size, x: canvas.width / 2 - zoom.x * film.width * size, y: canvas.height / 2 - zoom.y * film.height * size };
  }

  function drawPane(name) {
    const canvas = canvases[name], its = shown[name] || {};
    const ratio = window.devicePixelRatio || 1;
    const wide = Math.round(canvas.clientWidth * ratio), high = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, wide, high);
    const caption = canvas.nextElementSibling;
    const heat = its.values && shown.heat && shown.opacity > 0, line = heat && its.threshold > 0;
    const words = [its.title || ""];
    if (line) words.push(`white line: ${its.threshold.toFixed(2)}${its.unit === "logits" ? " logits" : ""}`);
    if (its.values && shown.show_boxes && (shown.boxes || []).length) words.push("blue: reference boxes");
    caption.textContent = film ? words.join(" · ") : "";
    canvas.setAttribute("aria-label", caption.textContent);
    canvas.style.visibility = film ? "visible" : "hidden";
    if (!film || !wide) return;
    const { size, x, y } = place(canvas);
    context.setTransform(size, 0, 0, size, x, y);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(once("film", [film, gray, shown.invert], () => graded(film, gray, shown.invert)), 0, 0);
    if (!its.values) return;
    if (heat) {
      const make = () => colored(its, film, shown.colors, shown.opacity, look.rise);
      const colors = once(`${name} heat`, [its, film, shown.opacity], make);
      context.drawImage(colors, 0, 0, film.width, film.height);
      if (line) {
        context.setTransform(size * film.width, 0, 0, size * film.height, x, y);
        const path = once(`${name} line`, [its], () => contour(its));
        const scaled = new Path2D();
        scaled.addPath(path, context.getTransform());
        context.setTransform(1, 0, 0, 1, 0, 0);
        context.strokeStyle = "white";
        context.lineWidth = 1.25 * ratio;
        context.stroke(scaled);
      }
    }
    if (!shown.show_boxes) return;
    context.setTransform(1, 0, 0, 1, 0, 0);
    for (const [color, thick] of [["rgba(0, 0, 0, 0.5)", 4], [look.boxes, 2]]) {
      context.strokeStyle = color;
      context.lineWidth = thick * ratio;
      for (const [left, top, width, height] of shown.boxes || [])
        context.strokeRect(x + left * size, y + top * size, width * size, height * size);
    }
  }

  function drawBar() {
    const its = shown.right || {};
    bar.style.visibility = film && its.values ? "visible" : "hidden";
    if (!film || !its.values) return;
    const ratio = window.devicePixelRatio || 1;
    [bar.width, bar.height] = [Math.round(bar.clientWidth * ratio), Math.round(bar.clientHeight * ratio)];
    const context = bar.getContext("2d");
    context.scale(ratio, ratio);
    const left = 6, width = bar.clientWidth - 70, top = 6, high = 12;
    for (let at = 0; at < width; at++) {
      const step = Math.min(255, Math.floor((at / width) * 256));
      const share = (shown.heat ? shown.opacity : 0) * (step / 255) ** look.rise;
      const mixed = [0, 1, 2].map((one) => Math.round((1 - share) * look.gray + share * shown.colors[3 * step + one]));
      context.fillStyle = `rgb(${mixed.join(",")})`;
      context.fillRect(left + at, top, 1.5, high);
    }
    const style = getComputedStyle(view);
    context.fillStyle = context.strokeStyle = style.color;
    context.font = `11px ${style.fontFamily}`;
    const shownAs = (value) => value.toPrecision(2);
    const over = { 0: "0", 0.5: shownAs(its.scale / 2), 1: `${shownAs(its.scale)} ${its.unit}` };
    for (const [share, words] of Object.entries(over)) {
      context.fillRect(left + share * width - 0.5, top + high, 1, 3);
      context.textAlign = share === "0" ? "left" : "center";
      context.fillText(words, left + share * width + (share === "0" ? -3 : 0), top + high + 14);
    }
    const mark = (value, draws) => draws(left + clamp(value / its.scale, 0, 1) * width);
    if (its.threshold > 0)
      mark(its.threshold, (x) => {
        context.fillStyle = "white";
        context.fillRect(x - 1, top, 2, high);
      });
    if (cursor)
      mark(valueAt(its, cursor.x, cursor.y), (x) => {
        context.fillStyle = style.color;
        context.beginPath();
        context.moveTo(x, top);
        context.lineTo(x - 4, top - 6);
        context.lineTo(x + 4, top - 6);
        context.fill();
      });
  }

  function drawWords() {
    const words = [];
    if (film && cursor) {
      const x = Math.floor(cursor.x * film.width), y = Math.floor(cursor.y * film.height);
      words.push(`x ${x}, y ${y}`, `gray ${grays(film)[y * film.width + x]}`);
      for (const its of [shown.left, shown.right])
        if (its && its.values) words.push(`${its.title} ${valueAt(its, cursor.x, cursor.y).toFixed(2)}`);
    }
    find(".cursor").textContent = words.join(" · ");
    const size = film ? `${film.width} × ${film.height}` : "";
    find(".zoom").textContent = film
      ? `${size} · zoom ${zoom.times.toFixed(1)} · window ${Math.round(gray.width)}, level ${Math.round(gray.level)}`
      : "";
  }

  // Zoom about a point of the film that stays where it is on the canvas.
  function zoomBy(factor, point = { x: zoom.x, y: zoom.y }) {
    const times = clamp(zoom.times * factor, 1, LARGEST_ZOOM);
    const share = zoom.times / times;
    moveTo(point.x + (zoom.x - point.x) * share, point.y + (zoom.y - point.y) * share, times);
  }
  function moveTo(x, y, times = zoom.times) {
    const rest = 0.5 / times;
    zoom = { times, x: clamp(x, rest, 1 - rest), y: clamp(y, rest, 1 - rest) };
    draw();
  }
  function wholeImage() {
    zoom = { times: 1, x: 0.5, y: 0.5 };
    draw();
  }
  function fileWindow() {
    gray = { ...WINDOW };
    draw();
  }

  function pointAt(event, canvas) {
    const box = canvas.getBoundingClientRect();
    const { size, x, y } = place(canvas);
    const ratio = canvas.width / box.width;
    const at = { x: ((event.clientX - box.left) * ratio - x) / size / film.width, y: ((event.clientY - box.top) * ratio - y) / size / film.height };
    return at.x >= 0 && at.x < 1 && at.y >= 0 && at.y < 1 ? at : null;
  }

  let drag = null;
  for (const canvas of Object.values(canvases)) {
    canvas.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      event.stopPropagation();
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (!film) return;
      canvas.setPointerCapture(event.pointerId);
      drag = { x: event.clientX, y: event.clientY, window: event.button === 2 || event.shiftKey, zoom, gray, canvas };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!film) return;
      if (drag) {
        const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
        if (drag.window) {
          gray = { width: clamp(drag.gray.width + dx, 1, 510), level: clamp(drag.gray.level + dy, 0, 255) };
        } else {
          const box = canvas.getBoundingClientRect();
          const { size } = place(canvas);
          const ratio = canvas.width / box.width / size;
          moveTo(drag.zoom.x - (dx * ratio) / film.width, drag.zoom.y - (dy * ratio) / film.height);
        }
      }
      cursor = pointAt(event, canvas);
      draw();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (drag = null));
    canvas.addEventListener("pointerleave", () => {
      cursor = null;
      draw();
    });
    canvas.addEventListener("dblclick", () => {
      wholeImage();
      fileWindow();
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!film || !view.contains(document.activeElement)) return; // the page scrolls
        event.preventDefault();
        zoomBy(Math.exp(-event.deltaY / 400), pointAt(event, canvas) || undefined);
      },
      { passive: false },
    );
  }
  view.addEventListener("mousedown", () => view.focus({ preventScroll: true }));

  function flip(name) {
    model.set(name, !model.get(name)); // the tick box follows
    model.save_changes();
  }

  const PAGE_KEYS = {
    b: () => flip("show_boxes"), h: () => flip("heat"), i: () => flip("invert"),
    "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), 0: wholeImage,
    w: fileWindow, "?": () => (help.hidden = !help.hidden), Escape: () => (help.hidden = true),
  };

  // On the window, in the capture phase: otherwise JupyterLab takes the keys for its cells ("x"
  // would cut this one). Sliders and lists keep theirs; Tab, Enter and Space work as on any page.
  function onKey(event) {
    const panel = el.closest(".chexnet-explorer");
    const target = event.target;
    const inside = panel && target instanceof Element && panel.contains(target);
    if (!inside || event.ctrlKey || event.altKey || event.metaKey || target.closest(FIELDS)) return;
    if (event.shiftKey && event.key.length > 1) return; // Shift+Enter runs the cell
    if (target.closest(SLIDER) && SLIDER_KEYS.includes(event.key)) return;
    event.stopImmediatePropagation();
    if (PAGE_KEYS[event.key]) {
      event.preventDefault();
      PAGE_KEYS[event.key]();
    } else if (model.get("kernel_keys").includes(event.key)) {
      event.preventDefault();
      const known = ahead[LIKE[event.key] || event.key];
      ahead = {};
      if (known) {
        soon = known;
        update();
      }
      model.send({ key: event.key }); // while the kernel is busy it waits its turn; none is lost
    }
  }
  window.addEventListener("keydown", onKey, true);

  function onBusy() {
    const panel = el.closest(".chexnet-explorer") || view;
    panel.classList.toggle("chexnet-is-busy", model.get("busy"));
  }

  function onMessage(message, buffers) {
    if (message.do === "help") PAGE_KEYS["?"]();
    if (message.do === "save") save(message.name, new Blob(buffers, { type: message.type }));
    if (message.do === "save view") saveView();
  }

  // Both panes as they are on the screen, with their captions.
  async function saveView() {
    if (!film) return;
    const both = [canvases.left, canvases.right], ratio = window.devicePixelRatio || 1;
    const gap = 8 * ratio, words = 20 * ratio;
    const whole = new OffscreenCanvas(both[0].width + gap + both[1].width, both[0].height + 2 * words);
    const context = whole.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, whole.width, whole.height);
    context.fillStyle = "black";
    context.font = `${12 * ratio}px sans-serif`;
    both.forEach((canvas, at) => {
      const x = at * (both[0].width + gap);
      context.drawImage(canvas, x, 0);
      context.fillText(canvas.nextElementSibling.textContent, x, both[0].height + 0.7 * words, canvas.width);
    });
    const score = side.querySelector(".score");
    context.fillText(`${shown.name}   ${score ? score.textContent : ""}`, 0, both[0].height + 1.7 * words);
    save(`${shown.name}.png`, await whole.convertToBlob({ type: "image/png" }));
  }

  const resized = new ResizeObserver(draw);
  resized.observe(view);
  const listeners = Object.entries({
    change: onChange, "change:ahead": onAhead, "change:film": onAnswer, "change:side": onAnswer,
    "change:busy": onBusy, "msg:custom": onMessage,
  });
  for (const [event, listener] of listeners) model.on(event, listener);
  onChange();
  return () => {
    resized.disconnect();
    window.removeEventListener("keydown", onKey, true);
    clearTimeout(resting);
    for (const [event, listener] of listeners) model.off(event, listener);
  };
}

export default { render };
