"""The explorer: a run's test films one by one, with their maps, in JupyterLab, Notebook 7 or Voilà.

The kernel draws every picture from the run folder (``gallery.py``); the page shows it and sends the
keys to the kernel.
"""

import base64
import functools
import html
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import traitlets

from chexnet.evaluation import OUTCOMES
from chexnet.explorer.gallery import SORTS, Gallery, jpg
from chexnet.figures import OPACITY
from chexnet.runs import Run

_STEP_OF_KEY = {"ArrowRight": 1, "ArrowDown": 1, "ArrowLeft": -1, "ArrowUp": -1}


def explore(
    run: Run | str | Path, *, class_name: str | None = None, colormap: str = "heat"
) -> "Explorer":
    """A panel to look at the test films of a run one by one.

    With several classes one can be chosen; films without its label are left out. Its decision
    threshold and map threshold are set, the film and the other controls stay.
    Films are filtered by TP, FN, TN or FP and sorted by score, IoU or error. Buttons and, after a
    click on the film, the arrow keys go to the next or previous film. The decision threshold and
    the map threshold start at those chosen on validation; changing them here does not change the
    run. The panel needs no model: it offers the methods whose maps `chexnet.training.record_scores`
    has stored.

    Args:
        run: a run, or its folder.
        class_name: the class shown at first; ``None`` is the run's first.
        colormap: ``"heat"`` (safe for color blindness and in grayscale print), ``"jet"`` as in the
            original, or another colormap of matplotlib.

    Returns:
        a widget: the last line of a cell shows it.

    Raises:
        FileNotFoundError: the folder is not a run, or a file of the run is missing.
        ValueError: an unknown class or colormap, no test film, maps that do not belong to the
            scores, or no threshold can be chosen.

    Example:
        >>> from chexnet.explorer import explore
        >>> panel = explore("output/demo")
        >>> panel.outcome.value = "FN"
        >>> panel.next.click()
        >>> panel.gallery.films["y_true"][panel.gallery.films["image_id"] == panel.image_id].item()
        1
    """
    run = run if isinstance(run, Run) else Run(run)
    return Explorer(Gallery(run, class_name), colormap=colormap)


class FilmView(anywidget.AnyWidget):
    """The part of the panel that is not a control: two pictures (JPG), some HTML, and the keys."""

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    film = traitlets.Bytes().tag(sync=True)
    overlay = traitlets.Bytes().tag(sync=True)
    side = traitlets.Unicode().tag(sync=True)
    arrows = traitlets.List(list(_STEP_OF_KEY)).tag(sync=True)


class Explorer(ipywidgets.VBox):
    """The panel of `explore`; its controls can be set from code: ``panel.outcome.value = "FN"``."""

    def __init__(self, gallery: Gallery, *, colormap: str = "heat") -> None:
        """Shows the film with the highest score."""
        self.gallery = gallery
        self.colormap = colormap
        self._at = 0
        self._make_controls()
        self._galleries = {gallery.class_name: gallery}
        self._start_thresholds()
        self.view = FilmView()
        rows = [
            [self.class_name, self.outcome],
            [self.previous, self.next, self.sort, self.reverse],
            [self.decision_threshold, self.map_threshold, self.opacity],
            [self.method, self.boxes, self.clahe],
        ]
        wrap = ipywidgets.Layout(flex_flow="row wrap")
        super().__init__([*(ipywidgets.HBox(row, layout=wrap) for row in rows), self.view])
        self.add_class("chexnet-explorer")
        self._choose()
        self._watch()

    @property
    def image_id(self) -> str | None:
        """The present film; None where no film has the outcome asked for."""
        return self.gallery.films["image_id"][self._rows[self._at]] if len(self._rows) else None

    def turn(self, step: int) -> None:
        """Goes some films further; stops at both ends."""
        if len(self._rows):
            self._at = int(np.clip(self._at + step, 0, len(self._rows) - 1))
            self._show()

    def _make_controls(self) -> None:
        wide = {
            "style": {"description_width": "150px"},
            "layout": ipywidgets.Layout(width="440px"),
        }
        slider = functools.partial(ipywidgets.FloatSlider, min=0, max=1, **wide)
        narrow = ipywidgets.Layout(width="auto")
        checkbox = functools.partial(ipywidgets.Checkbox, indent=False, layout=narrow)
        names = [(f"{title}s ({key})", key) for key, (title, *_) in OUTCOMES.items()]
        self.class_name = ipywidgets.Dropdown(
            options=self.gallery.run.class_names,
            value=self.gallery.class_name,
            description="class",
        )
        _show_if(len(self.class_name.options) > 1, self.class_name)
        self.outcome = ipywidgets.ToggleButtons(options=[("all images", "all"), *names])
        self.outcome.style.button_width = "auto"
        self.previous = ipywidgets.Button(description="previous", icon="arrow-left")
        self.next = ipywidgets.Button(description="next", icon="arrow-right")
        sorts = [(title, key) for key, title in SORTS.items()]
        self.sort = ipywidgets.Dropdown(options=sorts, description="sort by")
        self.reverse = checkbox(description="reverse order")
        self.decision_threshold = slider(
            step=0.001, readout_format=".3f", description="decision threshold"
        )
        self.map_threshold = ipywidgets.SelectionSlider(options=[0.0], **wide)
        self.map_threshold.layout.width = "520px"
        self.map_threshold.add_class("chexnet-map-threshold")
        self.opacity = slider(value=OPACITY, step=0.05, description="overlay opacity")
        self.method = ipywidgets.Dropdown(
            options=self.gallery.run.map_methods, description="saliency method", **wide
        )
        self.boxes = checkbox(value=True, description="reference boxes")
        self.clahe = checkbox(description="apply CLAHE")

    def _start_thresholds(self) -> None:
        """Sets the decision threshold and the map threshold that validation chose."""
        self._updating = True
        self.decision_threshold.value = self.gallery.threshold
        self._share = (self.gallery.chosen_map_threshold or 0) / self.gallery.scale("CAM")
        self._offer_map_thresholds()
        _show_if(self.gallery.has_boxes, self.boxes)

    def _offer_map_thresholds(self) -> None:
        """Fills the slider for the method, at the share of its scale that was chosen last."""
        method, chosen = self.method.value, self.gallery.chosen_map_threshold
        thresholds, scale = self.gallery.map_thresholds(method), self.gallery.scale(method)
        options = []
        for value in thresholds:
            label = f"{value:.2f}" if method == "CAM" else f"{value / scale:.0%}"
            own = method == "CAM" and value == chosen
            options.append((label + " (from validation)" * own, value))
        self._updating = True  # half of the changes alone would show something for a moment
        self.map_threshold.description = f"map threshold [{'logit' if method == 'CAM' else '%'}]"
        self.map_threshold.options = options
        self.map_threshold.index = int(np.abs(np.array(thresholds) / scale - self._share).argmin())
        self._updating = False

    def _watch(self) -> None:
        self.previous.on_click(lambda _: self.turn(-1))
        self.next.on_click(lambda _: self.turn(1))
        self.view.on_msg(lambda _view, sent, _buffers: self.turn(_STEP_OF_KEY[sent["key"]]))
        for control in (self.outcome, self.sort, self.reverse):
            control.observe(lambda _: self._choose(), names="value")
        for control in (self.opacity, self.boxes, self.clahe):
            control.observe(lambda _: self._show(), names="value")
        self.decision_threshold.observe(lambda _: self._choose_again(), names="value")
        self.map_threshold.observe(lambda _: self._change_map_threshold(), names="value")
        self.method.observe(lambda _: self._change_method(), names="value")
        self.class_name.observe(lambda _: self._change_class(), names="value")

    def _change_class(self) -> None:
        """Shows the same film for another class, or why this cannot be; then the class stays."""
        name, image_id = self.class_name.value, self.image_id
        if name == self.gallery.class_name:
            return
        try:
            if name not in self._galleries:
                self._galleries[name] = Gallery(self.gallery.run, name)
        except ValueError as error:
            self.class_name.value = self.gallery.class_name
            self.view.side = f'<p class="position">{html.escape(str(error))}</p>'
            return
        self.gallery = self._galleries[name]
        found = np.flatnonzero(self.gallery.films["image_id"] == image_id)
        self._rows, self._at = found[:1], 0
        self._start_thresholds()
        self._choose_again()

    def _choose(self) -> None:
        """Shows the first film that the controls select."""
        self._rows = np.arange(0)
        self._at = 0
        self._choose_again()

    def _choose_again(self) -> None:
        """Selects again, and stays at the present film where it is still selected."""
        if self._updating:
            return
        row = self._rows[self._at] if len(self._rows) else None
        self._rows = self.gallery.order(
            self.outcome.value,
            self.sort.value,
            threshold=self.decision_threshold.value,
            reverse=self.reverse.value,
            **self._map,
        )
        found = np.flatnonzero(self._rows == row)
        self._at = int(found[0]) if len(found) else min(self._at, max(len(self._rows) - 1, 0))
        self._show()

    def _change_map_threshold(self) -> None:
        if not self._updating:
            self._share = self.map_threshold.value / self.gallery.scale(self.method.value)
            self._choose_again()

    def _change_method(self) -> None:
        self._offer_map_thresholds()
        self._choose_again()

    @property
    def _map(self) -> dict:
        return {"method": self.method.value, "map_threshold": self.map_threshold.value}

    def _show(self) -> None:
        outcome, threshold = self.outcome.value, self.decision_threshold.value
        kind = "image" if outcome == "all" else OUTCOMES[outcome][0]
        if not len(self._rows):
            with self.view.hold_sync():
                self.view.film = self.view.overlay = b""
                self.view.side = f'<p class="position">No {kind}s at threshold {threshold:.3f}</p>'
            return
        row = self._rows[self._at]
        position = f"{self._at + 1} of {len(self._rows)} {kind}{'s' * (len(self._rows) > 1)}"
        with self.view.hold_sync():  # one message: never a film beside the map of another
            self.view.film = self.gallery.film_jpg(row, clahe=self.clahe.value)
            self.view.overlay = jpg(self._overlay())
            self.view.side = self.gallery.facts(
                row, position=position, threshold=threshold, **self._map
            )

    def _overlay(self) -> np.ndarray:
        return self.gallery.overlay(
            self._rows[self._at],
            opacity=self.opacity.value,
            boxes=self.boxes.value,
            clahe=self.clahe.value,
            colormap=self.colormap,
            **self._map,
        )

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        """The widget, and for pages without a kernel a picture of what it shows now."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and len(self._rows):
            film = self.gallery.pixels(self.image_id)
            both = np.hstack([np.repeat(film[..., np.newaxis], 3, axis=-1), self._overlay()])
            bundle["image/jpeg"] = base64.b64encode(jpg(both)).decode()
            bundle["text/plain"] = f"Explorer of {self.gallery.run!r} at film {self.image_id}"
        return bundle


def _show_if(visible: bool, control: ipywidgets.Widget) -> None:
    control.layout.display = None if visible else "none"
