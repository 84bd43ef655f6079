// Shows the film, its overlay and the text beside them, and sends the keys. The kernel draws.

const TAKES_ARROWS = "input:not([type=checkbox]), select, textarea, .noUi-handle";

function picture(name, words) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  image.className = name;
  image.alt = words;
  caption.textContent = words;
  figure.append(image, caption);
  return { figure, image };
}

function render({ model, el }) {
  const view = document.createElement("div");
  view.className = "chexnet-view";
  view.tabIndex = 0;
  const film = picture("film", "image");
  const overlay = picture("overlay", "CAM overlay with reference boxes");
  const side = document.createElement("div");
  side.className = "side";
  view.append(film.figure, overlay.figure, side);
  el.append(view);

  function show(name, { image }) {
    const bytes = model.get(name);
    const before = image.src;
    const some = bytes && bytes.byteLength > 0;
    image.style.visibility = some ? "visible" : "hidden";
    if (some) image.src = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    if (before.startsWith("blob:")) URL.revokeObjectURL(before);
  }
  const showFilm = () => show("film", film);
  const showOverlay = () => show("overlay", overlay);
  const showSide = () => {
    side.innerHTML = model.get("side"); // made by chexnet.explorer, which escapes its text
  };
  showFilm();
  showOverlay();
  showSide();
  model.on("change:film", showFilm);
  model.on("change:overlay", showOverlay);
  model.on("change:side", showSide);

  // On the window, in the capture phase: otherwise JupyterLab uses the arrow keys for its cells.
  // Sliders and lists keep theirs.
  function onKey(event) {
    const panel = el.closest(".chexnet-explorer");
    const inside = panel && event.target instanceof Element && panel.contains(event.target);
    const modified = event.ctrlKey || event.altKey || event.metaKey || event.shiftKey;
    if (!inside || modified || !model.get("arrows").includes(event.key)) return;
    if (event.target.closest(TAKES_ARROWS)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    model.send({ key: event.key });
  }
  window.addEventListener("keydown", onKey, true);
  view.addEventListener("mousedown", () => view.focus({ preventScroll: true }));
  return () => {
    window.removeEventListener("keydown", onKey, true);
    model.off("change:film", showFilm);
    model.off("change:overlay", showOverlay);
    model.off("change:side", showSide);
  };
}

export default { render };
