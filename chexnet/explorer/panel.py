"""The explorer: a run's test films one by one, with their maps, in JupyterLab, Notebook 7 or Voilà.

The kernel draws every picture from the run folder (``gallery.py``); the page shows it and
passes the keys on.
"""

import base64
from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import traitlets

from chexnet.evaluation import OUTCOMES
from chexnet.explorer.gallery import SORTS, Gallery, jpg, methods_at_hand
from chexnet.figures import OPACITY
from chexnet.runs import Run

_STEP_OF_KEY = {"ArrowRight": 1, "ArrowDown": 1, "ArrowLeft": -1, "ArrowUp": -1}
_WIDE = {"style": {"description_width": "110px"}, "layout": ipywidgets.Layout(width="370px")}


def explore(
    run: Run | str | Path, *, class_name: str | None = None, colormap: str = "heat"
) -> "Explorer":
    """A panel to look at the test films of a run one by one.

    Films are chosen by outcome, sorted by score, by IoU with the boxes or by how far the score is
    from the label, and turned over by buttons or, after a click on the film, by the arrow keys. The
    thresholds of the decision and of the heat are first those chosen on validation; what changes
    here changes nothing in the run. Maps of another method than the exact one are computed from
    ``model.keras`` at first use and kept in the run folder (`chexnet.explorer.gallery`).

    Args:
        run: a run, or its folder.
        class_name: which class; ``None`` is the run's first.
        colormap: ``"heat"`` (safe for colour blindness and in grey print), ``"jet"`` as in the
            original, or any other of matplotlib's.

    Returns:
        a widget: the last line of a cell shows it.

    Raises:
        FileNotFoundError: the folder is no run, or the run lacks a file.
        ValueError: an unknown class or colour map, no test film, or no threshold to be had.
    """
    run = run if isinstance(run, Run) else Run(run)
    return Explorer(Gallery(run, class_name), colormap=colormap)


class FilmView(anywidget.AnyWidget):
    """What of the panel is not a control: two pictures, some HTML, and the keys.

    Attributes:
        film: JPG of the film; empty bytes show none.
        overlay: JPG of the film with map and boxes.
        side: HTML beside them.
        arrows: names of the keys that are sent as ``{"key": name}``.
    """

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    film = traitlets.Bytes().tag(sync=True)
    overlay = traitlets.Bytes().tag(sync=True)
    side = traitlets.Unicode().tag(sync=True)
    arrows = traitlets.List(list(_STEP_OF_KEY)).tag(sync=True)


class Explorer(ipywidgets.VBox):
    """The panel of `explore`; its controls can be set from code: ``panel.outcome.value = "FN"``.

    Attributes:
        gallery: the films.
        outcome, sort, reverse, decision, cut, opacity, method, boxes, clahe: the controls.
        previous, next: the buttons.
        view: the pictures.
        message: what went wrong, or what was computed just now.
    """

    def __init__(self, gallery: Gallery, *, colormap: str = "heat") -> None:
        """Shows the first film of all, the highest score first."""
        self.gallery = gallery
        self.colormap = colormap
        self._rows = np.arange(0)
        self._at = 0
        self._method = "CAM"
        self._settled = True
        self._make_controls()
        self._cut_share = self._share("CAM", self.cut.value)
        self.view = FilmView()
        self.message = ipywidgets.Output()
        turning = [self.previous, self.next, self.sort, self.reverse]
        rows = [
            self.outcome,
            ipywidgets.HBox(turning),
            ipywidgets.HBox([self.decision, self.cut, self.opacity], layout=_wrapped()),
            ipywidgets.HBox([self.method, self.boxes, self.clahe], layout=_wrapped()),
        ]
        super().__init__([*rows, self.view, self.message])
        self.add_class("chexnet-explorer")
        self._choose()
        self._watch()

    @property
    def image_id(self) -> str | None:
        """The film at hand; None where no film has the outcome asked for."""
        return self.gallery.films["image_id"][self._rows[self._at]] if len(self._rows) else None

    def turn(self, step: int) -> None:
        """Shows the film some places further on; at the ends it stays."""
        if len(self._rows):
            self._at = int(np.clip(self._at + step, 0, len(self._rows) - 1))
            self._show()

    def _make_controls(self) -> None:
        names = [(f"{title}s ({key})", key) for key, (title, *_) in OUTCOMES.items()]
        self.outcome = ipywidgets.ToggleButtons(options=[("all films", "all"), *names])
        self.outcome.style.button_width = "auto"
        self.previous = ipywidgets.Button(description="previous", icon="arrow-left")
        self.next = ipywidgets.Button(description="next", icon="arrow-right")
        sorts = [(title, key) for key, title in SORTS.items()]
        self.sort = ipywidgets.Dropdown(options=sorts, description="sort by")
        self.reverse = ipywidgets.Checkbox(description="the other way round", indent=False)
        self.decision = ipywidgets.FloatSlider(
            value=self.gallery.threshold,
            min=0,
            max=1,
            step=0.001,
            readout_format=".3f",
            description="called from",
            **_WIDE,
        )
        self.cut = ipywidgets.SelectionSlider(
            options=self._cuts("CAM"), description="heat from", **_WIDE
        )
        self.cut.layout.width = "430px"
        self.cut.add_class("chexnet-cut")
        self.cut.index = self._first_cut()
        self.opacity = ipywidgets.FloatSlider(
            value=OPACITY, min=0, max=1, step=0.05, description="opacity", **_WIDE
        )
        self.method = ipywidgets.Dropdown(
            options=methods_at_hand(self.gallery.run), description="map"
        )
        self.boxes = ipywidgets.Checkbox(value=True, description="boxes", indent=False)
        self.clahe = ipywidgets.Checkbox(description="equalised (CLAHE)", indent=False)
        self.method.style.description_width = "110px"  # in line with the sliders
        for control in (self.boxes, self.clahe, self.reverse):
            control.layout.width = "auto"

    def _watch(self) -> None:
        self.previous.on_click(lambda _: self.turn(-1))
        self.next.on_click(lambda _: self.turn(1))
        self.view.on_msg(lambda _view, said, _buffers: self.turn(_STEP_OF_KEY[said["key"]]))
        for control, react in (
            (self.outcome, self._choose),
            (self.sort, self._choose),
            (self.reverse, self._choose),
            (self.decision, self._choose_again),
            (self.cut, self._change_cut),
            (self.opacity, self._show),
            (self.boxes, self._show),
            (self.clahe, self._show),
            (self.method, self._change_method),
        ):
            control.observe(_without_argument(react), names="value")

    def _choose(self) -> None:
        """The first film of those asked for."""
        self._rows = self._order()
        self._at = 0
        self._show()

    def _choose_again(self) -> None:
        """As before, at the film at hand where it is still among them."""
        row = self._rows[self._at] if len(self._rows) else None
        self._rows = self._order()
        found = np.flatnonzero(self._rows == row)
        self._at = int(found[0]) if len(found) else min(self._at, max(len(self._rows) - 1, 0))
        self._show()

    def _change_cut(self) -> None:
        if self._settled:
            self._cut_share = self._share(self._method, self.cut.value)
            self._choose_again()

    def _order(self) -> np.ndarray:
        return self.gallery.order(
            self.outcome.value,
            self.sort.value,
            threshold=self.decision.value,
            method=self._method,
            cut=self.cut.value,
            reverse=self.reverse.value,
        )

    def _change_method(self) -> None:
        self.message.clear_output()
        wanted = self.method.value
        if wanted == self._method:
            return
        with self.message:  # the progress bar goes here
            try:
                maps = self.gallery.maps(wanted)
            except (OSError, ValueError) as error:
                print(f"no maps of {wanted}: {error}")
                self.method.value = self._method
                return
        if maps.score_error:
            self.message.append_stdout(
                f"{wanted}: computed from the stored pictures, with which scores differ from the "
                f"recorded ones by {maps.score_error:.3f} at most\n"
            )
        # The same share of the scale, as near as this method has it.
        cuts = self._cuts(wanted)
        shares = np.array([self._share(wanted, cut) for _, cut in cuts])
        self._method = wanted
        self._settled = False  # new options alone would show the first of them for a moment
        self.cut.options = cuts
        self.cut.index = int(np.abs(shares - self._cut_share).argmin())
        self._settled = True
        self._choose_again()

    def _cuts(self, method: str) -> list[tuple[str, int]]:
        """Labels and numbers of a method's cuts."""
        maps, chosen = self.gallery.maps(method), self.gallery.chosen_cut
        labels = []
        for number, cut in enumerate(maps.cuts[self.gallery.class_index]):
            label = f"{cut:.2f}" if method == "CAM" else f"{self._share(method, number):.0%}"
            own = method == "CAM" and chosen is not None and np.isclose(cut, chosen)
            labels.append((label + " (validation)" * bool(own), number))
        return labels

    def _first_cut(self) -> int:
        own = [number for label, number in self._cuts("CAM") if label.endswith("(validation)")]
        return own[0] if own else 0

    def _share(self, method: str, cut: int) -> float:
        maps, index = self.gallery.maps(method), self.gallery.class_index
        return float(maps.cuts[index, cut] / maps.scale[index])

    def _show(self) -> None:
        kind = {"all": "film"}.get(self.outcome.value) or OUTCOMES[self.outcome.value][0]
        if not len(self._rows):
            counts = f"no {kind}s from a score of {self.decision.value:.3f} on"
            with self.view.hold_sync():
                self.view.film = self.view.overlay = b""
                self.view.side = f'<p class="position">{counts}</p>'
            return
        row, at = self._rows[self._at], {"method": self._method, "cut": self.cut.value}
        position = f"{self._at + 1} of {len(self._rows)} {kind}{'s' * (len(self._rows) > 1)}"
        with self.view.hold_sync():  # one message: no film beside the map of another
            self.view.film = self.gallery.film_jpg(row, clahe=self.clahe.value)
            self.view.overlay = jpg(self._overlay())
            self.view.side = self.gallery.facts(
                row, position=position, threshold=self.decision.value, **at
            )

    def _overlay(self) -> np.ndarray:
        return self.gallery.overlay(
            self._rows[self._at],
            method=self._method,
            cut=self.cut.value,
            opacity=self.opacity.value,
            boxes=self.boxes.value,
            clahe=self.clahe.value,
            colormap=self.colormap,
        )

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        """The widget, and for pages that run no code a picture of what it shows now."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and len(self._rows):
            film = self.gallery.pixels(self.image_id)
            both = np.hstack([np.repeat(film[..., np.newaxis], 3, axis=-1), self._overlay()])
            bundle["image/jpeg"] = base64.b64encode(jpg(both)).decode()
            bundle["text/plain"] = f"Explorer of {self.gallery.run!r} at film {self.image_id}"
        return bundle


def _wrapped() -> ipywidgets.Layout:
    return ipywidgets.Layout(flex_flow="row wrap")


def _without_argument(react: Callable[[], None]) -> Callable[[object], None]:
    return lambda _change: react()
