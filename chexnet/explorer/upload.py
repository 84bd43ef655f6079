"""A panel that scores a film chosen on the user's computer."""

import html
import io
import tempfile
from pathlib import Path

import ipywidgets

from chexnet.explorer.turns import in_turn
from chexnet.predict import Prediction, Predictor


def upload_panel(predictor: Predictor) -> "UploadPanel":
    """A panel with a button to choose a film, and its score, map and warnings.

    The file stays in memory and in a temporary folder; nothing of it is kept.

    Args:
        predictor: scores the film.

    Returns:
        a widget for JupyterLab, Notebook 7 or Voilà: the last line of a cell shows it.

    Example:
        >>> from chexnet.explorer import upload_panel
        >>> from chexnet.predict import Predictor
        >>> panel = upload_panel(Predictor("output/demo"))
        >>> panel.show("notes.txt", b"This is not a film.")
        >>> "notes.txt" in panel.text.value
        True
    """
    return UploadPanel(predictor)


class UploadPanel(ipywidgets.VBox):
    """The panel of `upload_panel`.

    Attributes:
        upload: the button.
        class_name: the class whose map is shown; hidden where there is one only.
        text: scores and warnings, or the error.
        picture: the figure of the prediction.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Shows the button only."""
        self.predictor = predictor
        self.upload = ipywidgets.FileUpload(
            description="Choose a film", layout=ipywidgets.Layout(width="220px")
        )
        self.class_name = ipywidgets.Dropdown(
            options=predictor.class_names, description="map of", layout={"display": "none"}
        )
        self.text = ipywidgets.HTML("A DICOM, PNG or JPG file. Not for clinical use.")
        self.picture = ipywidgets.Image(format="png", layout={"display": "none"})
        self._found: Prediction | None = None
        super().__init__([self.upload, self.class_name, self.text, self.picture])
        self.add_class("chexnet-upload")
        self.upload.observe(lambda change: self._take(change["new"]), "value")
        self.class_name.observe(lambda change: self._draw(), "value")
        in_turn([self.upload, self.class_name])

    def _take(self, files: tuple) -> None:
        for file in files:
            self.show(file["name"], bytes(file["content"]))

    def show(self, name: str, content: bytes) -> None:
        """Scores a film and shows the result, or why it cannot be scored.

        Args:
            name: of the file, for messages.
            content: of the file.
        """
        self._found = None
        self.text.value = f"Scoring {html.escape(name)} ..."
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film"
            path.write_bytes(content)
            try:
                self._found = self.predictor(path)
                self._draw()
                text = str(self._found)
            except (OSError, ValueError) as error:
                self._found = None
                self._draw()
                text = f"Error: {error}"
        lines = html.escape(text.replace(str(path), name)).splitlines()
        self.text.value = "<br>".join(lines)

    def _draw(self) -> None:
        several = self._found is not None and len(self.predictor.class_names) > 1
        if self._found is not None:
            png = io.BytesIO()
            self._found.figure(self.class_name.value).savefig(png, format="png", dpi=110)
            self.picture.value = png.getvalue()
        self.class_name.layout.display = None if several else "none"
        self.picture.layout.display = "none" if self._found is None else None
