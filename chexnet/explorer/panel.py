"""The explorer: a run's test films one by one, with their maps, in JupyterLab, Notebook 7 or Voilà.

The kernel sends films and maps from the run folder (``gallery.py``); the page draws them
(``explorer.js``), so that zoom, window, opacity and boxes change without the kernel, and sends the
keys to the kernel.
"""

import base64
import contextlib
import functools
import html
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anywidget
import cv2
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from chexnet.evaluation import OUTCOMES
from chexnet.explorer.flags import Flags
from chexnet.explorer.gallery import SORTS, Gallery, jpg
from chexnet.explorer.turns import in_turn
from chexnet.figures import BAR_GRAY, BOX_COLOR, OPACITY, RISE, color_table
from chexnet.files import full_id
from chexnet.runs import Run

_STEP_OF_KEY = {
    **{"ArrowRight": 1, "ArrowDown": 1, "PageDown": 10, "End": 1_000_000_000},
    **{"ArrowLeft": -1, "ArrowUp": -1, "PageUp": -10, "Home": -1_000_000_000},
}
_OUTCOME_OF_KEY = dict(zip("12345", ("all", *OUTCOMES), strict=True))
_TOGGLE_OF_KEY = {"c": "clahe", "f": "flag"}  # b, h and i are the page's own
_IMAGE_ONLY = "image only"
_STATIC = 512  # pixels of a film on a page without a kernel


def explore(
    run: Run | str | Path,
    *,
    class_name: str | None = None,
    colormap: str = "heat",
    compare: Run | str | Path | None = None,
) -> "Explorer":
    """A panel to look at the test films of a run one by one.

    With several classes one can be chosen; films without its label are left out. Its decision
    threshold and map threshold are set, the film and the other controls stay.
    Films are filtered by TP, FN, TN or FP and by flag, and sorted by score, IoU or error. The
    thresholds start at those chosen on validation; changing them here does not change the run. The
    panel needs no model: it offers the methods whose maps `chexnet.training.record_scores` has
    stored.

    After a click on the film, keys work: arrows, Page Up/Down, Home and End go to another film,
    ``1`` to ``5`` choose the outcome, ``b`` boxes, ``h`` heat map, ``i`` invert, ``c`` CLAHE,
    ``f`` flag, ``+ - 0`` zoom, ``w`` window, ``?`` help. The wheel zooms, a drag moves, a drag with
    the right button (or Shift) changes window and level. Flags and notes are kept in the run
    folder as ``flags.csv``.

    Args:
        run: a run, or its folder.
        class_name: the class shown at first; ``None`` is the run's first.
        colormap: ``"heat"`` (safe for color blindness and in grayscale print), ``"jet"`` as in the
            original, or another colormap of matplotlib.
        compare: a second run, whose maps of the same films can be shown on the left.

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
    if compare is not None and not isinstance(compare, Run):
        compare = Run(compare)
    return Explorer(Gallery(run, class_name), colormap=colormap, compare=compare)


class FilmView(anywidget.AnyWidget):
    """The part of the panel that is not a control: what the page draws, and its keys."""

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    film = traitlets.Bytes().tag(sync=True)  # JPG
    name = traitlets.Unicode().tag(sync=True)  # of a picture that is saved
    left = traitlets.Dict().tag(sync=True)  # as `Gallery.pane`; without a map the film alone
    right = traitlets.Dict().tag(sync=True)
    boxes: traitlets.List = traitlets.List().tag(sync=True)  # of the stored film
    colors = traitlets.Bytes().tag(sync=True)  # 256 x RGB
    look = traitlets.Dict({"rise": RISE, "gray": BAR_GRAY, "boxes": BOX_COLOR}).tag(sync=True)
    opacity = traitlets.Float(OPACITY).tag(sync=True)
    heat = traitlets.Bool(True).tag(sync=True)
    show_boxes = traitlets.Bool(True).tag(sync=True)
    invert = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    ahead = traitlets.Dict().tag(sync=True)  # film to side, as some keys will show them, by key
    side = traitlets.Unicode().tag(sync=True)  # HTML
    kernel_keys = traitlets.List([*_STEP_OF_KEY, *_OUTCOME_OF_KEY, *_TOGGLE_OF_KEY]).tag(sync=True)


class Explorer(ipywidgets.VBox):
    """The panel of `explore`; its controls can be set from code: ``panel.outcome.value = "FN"``."""

    def __init__(
        self, gallery: Gallery, *, colormap: str = "heat", compare: Run | None = None
    ) -> None:
        """Shows the film with the highest score."""
        self.gallery = gallery
        self.colormap = colormap
        self._at = 0
        self._rows = np.arange(0)
        self._message = ""
        self._other = compare
        self.flags = Flags(gallery.run)
        self._make_controls()
        self._galleries = {gallery.class_name: gallery}
        self._others: dict[str, Gallery] = {}
        self._start_thresholds()
        self.view = FilmView(colors=color_table(colormap).tobytes())
        rows = [
            [self.class_name, self.outcome, self.flagged],
            [self.previous, self.next, self.jump, self.sort, self.reverse],
            [self.decision_threshold, self.map_threshold, self.opacity],
            [self.method, self.beside, self.heat, self.boxes, self.clahe, self.invert],
        ]
        below = [self.flag, self.note, self.save_list, self.save_view, self.help]
        wrap = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        super().__init__(
            [
                *(ipywidgets.HBox(row, layout=wrap) for row in rows),
                self.view,
                ipywidgets.HBox(below, layout=wrap),
            ]
        )
        self.add_class("chexnet-explorer")
        self._choose()
        self._watch()
        in_turn([self.view, *itertools.chain(*rows, below)])

    @property
    def image_id(self) -> str | None:
        """The present film; None where no film has the outcome asked for."""
        return self.gallery.films["image_id"][self._rows[self._at]] if len(self._rows) else None

    def turn(self, step: int) -> None:
        """Goes some films further; stops at both ends."""
        if len(self._rows):
            self._at = int(np.clip(self._at + step, 0, len(self._rows) - 1))
            self._show()

    def go_to(self, image_id: str) -> None:
        """Shows a film; the beginning of its id is enough where it is unique.

        Raises:
            ValueError: no film of this class has such an id, or several have.
        """
        ids = self.gallery.films["image_id"].tolist()
        row = ids.index(full_id(image_id, ids, "jump to"))
        if row not in self._rows:
            self._updating = True
            self.outcome.value, self.flagged.value = "all", False
            self._updating = False
            self._choose_again()
        self._at = int(np.flatnonzero(self._rows == row)[0])
        self._show()

    def table(self) -> pd.DataFrame:
        """The list of films that is shown, in its order, with flags and notes."""
        table = self.gallery.table(self._rows, threshold=self.decision_threshold.value, **self._map)
        found = [self.flags.get(image_id) for image_id in table["image_id"]]
        return table.assign(flag=[int(flag) for flag, _ in found], note=[note for _, note in found])

    def _make_controls(self) -> None:
        self._make_choice()
        self._make_sliders()
        methods = self.gallery.run.map_methods
        self.method = _dropdown(options=methods, description="saliency method")
        self.method.style.description_width = "110px"
        others = [_IMAGE_ONLY, *methods]
        others += [] if self._other is None else [f"run {self._other.folder.resolve().name}"]
        self.beside = _dropdown(options=others, description="left")
        self.heat = _checkbox(value=True, description="heat map")
        self.boxes = _checkbox(value=True, description="reference boxes")
        self.clahe = _checkbox(description="apply CLAHE")
        self.invert = _checkbox(description="invert")
        self.flag = ipywidgets.ToggleButton(description="flag", icon="flag", layout=_narrow())
        self.note = ipywidgets.Text(
            placeholder="a note on this image",
            description="note",
            continuous_update=False,
            layout={"width": "420px", "max_width": "100%"},
        )
        self.save_list = _button("list as CSV", "download")
        self.save_view = _button("view as PNG", "download")
        self.help = _button("keys", "question")

    def _make_choice(self) -> None:
        """Makes the controls that choose the film."""
        self.class_name = _dropdown(
            options=self.gallery.run.class_names,
            value=self.gallery.class_name,
            description="class",
        )
        _show_if(len(self.class_name.options) > 1, self.class_name)
        names = [(f"{title}s ({key})", key) for key, (title, *_) in OUTCOMES.items()]
        self.outcome = ipywidgets.ToggleButtons(
            options=[("all images", "all"), *names],
            tooltips=[f"key {key}" for key in _OUTCOME_OF_KEY],
        )
        self.outcome.style.button_width = "auto"
        self.flagged = _checkbox(description="flagged only")
        self.previous = _button("previous", "arrow-left")
        self.next = _button("next", "arrow-right")
        self.jump = ipywidgets.Text(
            placeholder="image id or its beginning",
            description="jump to",
            continuous_update=False,
            layout={"width": "280px"},
        )
        sorts = [(title, key) for key, title in SORTS.items()]
        self.sort = _dropdown(options=sorts, description="sort by")
        self.reverse = _checkbox(description="reverse order")

    def _make_sliders(self) -> None:
        wide = {
            "style": {"description_width": "130px"},
            "layout": ipywidgets.Layout(width="400px", max_width="100%"),
        }
        slider = functools.partial(ipywidgets.FloatSlider, min=0, max=1, **wide)
        self.decision_threshold = slider(
            step=0.001, readout_format=".3f", description="decision threshold"
        )
        self.opacity = slider(value=OPACITY, step=0.05, description="overlay opacity")
        self.map_threshold = ipywidgets.SelectionSlider(
            options=[0.0],
            style={"description_width": "145px"},
            layout={"width": "500px", "max_width": "100%"},
        )
        self.map_threshold.add_class("chexnet-map-threshold")

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
        self.view.on_msg(lambda _view, sent, _buffers: self._press(sent["key"]))
        for control in (self.outcome, self.flagged, self.sort, self.reverse):
            control.observe(lambda _: self._choose(), names="value")
        self.clahe.observe(lambda _: self._show(), names="value")
        self.beside.observe(lambda _: self._change_beside(), names="value")
        # Links on the page: frames while a slider is dragged, also where the kernel is far away.
        ipywidgets.jsdlink((self.opacity, "value"), (self.view, "opacity"))
        for control, name in (
            (self.heat, "heat"),
            (self.boxes, "show_boxes"),
            (self.invert, "invert"),
        ):
            ipywidgets.jslink((control, "value"), (self.view, name))
        self.decision_threshold.observe(lambda _: self._choose_again(), names="value")
        self.map_threshold.observe(lambda _: self._change_map_threshold(), names="value")
        self.method.observe(lambda _: self._change_method(), names="value")
        self.class_name.observe(lambda _: self._change_class(), names="value")
        self.jump.observe(lambda _: self._jump(), names="value")
        for control in (self.flag, self.note):
            control.observe(lambda _: self._write_flag(), names="value")
        self.save_list.on_click(lambda _: self._save_list())
        self.save_view.on_click(lambda _: self.view.send({"do": "save view"}))
        self.help.on_click(lambda _: self.view.send({"do": "help"}))

    def _press(self, key: str) -> None:
        """Does what a key of the page stands for."""
        if key in _STEP_OF_KEY:
            self.turn(_STEP_OF_KEY[key])
        elif key in _OUTCOME_OF_KEY:
            self.outcome.value = _OUTCOME_OF_KEY[key]
        elif key == "ahead":  # the page has time
            self._look_ahead()
        else:
            control = getattr(self, _TOGGLE_OF_KEY[key])
            control.value = not control.value

    def _jump(self) -> None:
        if not self.jump.value.strip():
            return
        try:
            self.go_to(self.jump.value.strip())
            self.jump.value = ""
        except ValueError as error:
            self._say(str(error))

    def _write_flag(self) -> None:
        if self._updating or self.image_id is None:
            return
        self._color_flag()
        try:
            self.flags.set(self.image_id, flag=self.flag.value, note=self.note.value)
        except (OSError, ValueError) as error:
            self._say(f"{self.gallery.run.folder / 'flags.csv'}: not written ({error})")

    def _say(self, message: str) -> None:
        """Shows a message until the next film."""
        self._message = message
        self._show()

    def _save_list(self) -> None:
        words = [self.gallery.run.folder.resolve().name, self.gallery.class_name]
        name = "-".join([*words, self.outcome.value]).replace(" ", "_") + ".csv"
        with self._busy():
            content = self.table().to_csv(index=False).encode()
        self.view.send({"do": "save", "name": name, "type": "text/csv"}, [content])

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """The page is dimmed while something is computed; keys and clicks wait their turn."""
        self.view.busy = True
        try:
            yield
        finally:
            self.view.busy = False

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
            self._say(str(error))
            return
        self.gallery = self._galleries[name]
        found = np.flatnonzero(self.gallery.films["image_id"] == image_id)
        self._rows, self._at = found[:1], 0
        self._start_thresholds()
        with self._busy():
            self._choose_again()

    def _choose(self) -> None:
        """Shows the first film that the controls select."""
        if self._updating:
            return
        self._rows = np.arange(0)
        self._at = 0
        with self._busy():
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
        if self.flagged.value:
            ids = self.gallery.films["image_id"].to_numpy(str)
            self._rows = self._rows[np.isin(ids[self._rows], self.flags.flagged)]
        found = np.flatnonzero(self._rows == row)
        self._at = int(found[0]) if len(found) else min(self._at, max(len(self._rows) - 1, 0))
        self._show()

    def _change_map_threshold(self) -> None:
        if not self._updating:
            self._share = self.map_threshold.value / self.gallery.scale(self.method.value)
            self._choose_again()

    def _change_method(self) -> None:
        with self._busy():
            self._offer_map_thresholds()
            self._choose_again()

    def _change_beside(self) -> None:
        with self._busy():
            self._show()

    @property
    def _map(self) -> dict:
        return {"method": self.method.value, "map_threshold": self.map_threshold.value}

    def _show(self) -> None:
        message, self._message = self._message, ""
        if message:
            message = f'<p class="message">{html.escape(message)}</p>'
        if not len(self._rows):
            threshold = self.decision_threshold.value
            words = f'<p class="position">No {self._kind}s at threshold {threshold:.3f}</p>'
            with self.view.hold_sync():
                self.view.film = b""
                self.view.left = self.view.right = self.view.ahead = {}
                self.view.side = message + words
            self._show_flag(False, "")
            return
        with self.view.hold_sync():  # one message: never a film beside the map of another
            for name, value in self._state(self._at, self.clahe.value, message).items():
                setattr(self.view, name, value)
            self.view.ahead = {}
        self._show_flag(*self.flags.get(self.view.name))

    def _state(self, at: int, clahe: bool, message: str = "") -> dict:
        """What the page shows of a film of the list, by the names of `FilmView`."""
        row, threshold = self._rows[at], self.decision_threshold.value
        image_id = self.gallery.films["image_id"][row]
        position = f"{at + 1} of {len(self._rows)} {self._kind}{'s' * (len(self._rows) > 1)}"
        facts = self.gallery.facts(row, position=position, threshold=threshold, **self._map)
        return {
            "film": self.gallery.film_jpg(row, clahe=clahe),
            "name": image_id,
            "boxes": self.gallery.stored_boxes(row),
            "right": self.gallery.pane(row, **self._map),
            "left": self._left(row, image_id),
            "side": message + facts,
        }

    def _look_ahead(self) -> None:
        """Sends what the most frequent keys will show, so that the page does not wait for it."""
        if not len(self._rows):
            return
        clahe = self.clahe.value
        self.view.ahead = {"c": self._state(self._at, not clahe)} | {
            key: self._state(self._at + step, clahe)
            for key, step in (("ArrowRight", 1), ("ArrowLeft", -1))
            if 0 <= self._at + step < len(self._rows)
        }

    @property
    def _kind(self) -> str:
        outcome = self.outcome.value
        kind = "image" if outcome == "all" else OUTCOMES[outcome][0]
        return f"flagged {kind}" if self.flagged.value else kind

    def _show_flag(self, flag: bool, note: str) -> None:
        before, self._updating = self._updating, True
        self.flag.value, self.note.value = flag, note
        self._color_flag()
        self._updating = before

    def _color_flag(self) -> None:
        self.flag.button_style = "warning" if self.flag.value else ""

    def _left(self, row: int, image_id: str) -> dict:
        """What is beside the overlay: the image alone, another method, or another run."""
        chosen = self.beside.value
        if chosen == _IMAGE_ONLY:
            return {"title": "image"}
        if chosen in self.gallery.run.map_methods:
            threshold = self._share * self.gallery.scale(chosen)
            return self.gallery.pane(row, method=chosen, map_threshold=threshold)
        assert self._other is not None
        name = self.gallery.class_name
        try:
            if name not in self._others:
                self._others[name] = Gallery(self._other, name)
        except ValueError as error:
            return {"title": f"{chosen}: {error}"}
        gallery = self._others[name]
        rows = np.flatnonzero(gallery.films["image_id"] == image_id)
        if not len(rows):
            return {"title": f"{chosen}: image not in its test set"}
        pane = gallery.pane(int(rows[0]), map_threshold=gallery.chosen_map_threshold or 0.0)
        score = gallery.films["y_score"][rows[0]]
        return pane | {"title": f"{chosen}: {pane['title']}, score {score:.3f}"}

    def _overlay(self) -> np.ndarray:
        return self.gallery.overlay(
            self._rows[self._at],
            opacity=self.opacity.value if self.heat.value else 0.0,
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
            share = min(1, _STATIC / max(film.shape))
            both = cv2.resize(both, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
            bundle["image/jpeg"] = base64.b64encode(jpg(both)).decode()
            bundle["text/plain"] = f"Explorer of {self.gallery.run!r} at film {self.image_id}"
        return bundle


def _narrow() -> ipywidgets.Layout:
    return ipywidgets.Layout(width="auto")


def _checkbox(**options: Any) -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(indent=False, layout=_narrow(), **options)


def _dropdown(**options: Any) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(layout={"width": "280px"}, **options)


def _button(words: str, icon: str) -> ipywidgets.Button:
    return ipywidgets.Button(description=words, icon=icon, layout=_narrow())


def _show_if(visible: bool, control: ipywidgets.Widget) -> None:
    control.layout.display = None if visible else "none"
