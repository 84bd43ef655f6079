// Shows the film, its overlay and the text beside them, and sends the keys. The kernel draws.

const TAKES_ARROWS = "input:not([type=checkbox]), select, textarea, .noUi-handle";

const PARTS = `
  <div class="chexnet-view" tabindex="0">
    <figure><img class="film" alt="image"><figcaption>image</figcaption></figure>
    <figure>
      <img class="overlay" alt="CAM overlay with reference boxes">
      <figcaption>CAM overlay with reference boxes</figcaption>
    </figure>
    <div class="side"></div>
  </div>`;

function render({ model, el }) {
  el.innerHTML = PARTS;
  const view = el.querySelector(".chexnet-view");
  const side = el.querySelector(".side");

  function show(name) {
    const image = el.querySelector(`img.${name}`);
    const bytes = model.get(name);
    const before = image.src;
    const some = bytes && bytes.byteLength > 0;
    image.style.visibility = some ? "visible" : "hidden";
    if (some) image.src = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    if (before.startsWith("blob:")) URL.revokeObjectURL(before);
  }
  const updates = {
    "change:film": () => show("film"),
    "change:overlay": () => show("overlay"),
    "change:side": () => {
      side.innerHTML = model.get("side"); // made by chexnet.explorer, which escapes its text
    },
  };
  for (const [event, update] of Object.entries(updates)) {
    update();
    model.on(event, update);
  }

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
    for (const [event, update] of Object.entries(updates)) model.off(event, update);
  };
}

export default { render };
