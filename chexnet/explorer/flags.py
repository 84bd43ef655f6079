"""A reader's flags and notes on the films of a run: ``flags.csv`` in the run folder."""

import pandas as pd

from chexnet.files import read_table, refuse
from chexnet.runs import Run

_NAME = "flags.csv"
_COLUMNS = ["image_id", "flag", "note"]
_WAIT = 10  # seconds for another process that writes into the run


class Flags:
    """Flags and notes by image id, written at each change.

    ``flags.csv`` has the columns ``image_id, flag`` (1 or 0) and ``note``, one row a film that has
    a flag or a note.
    """

    def __init__(self, run: Run) -> None:
        """Reads those that are there."""
        self._run = run
        self._found = self._read()

    def get(self, image_id: str) -> tuple[bool, str]:
        """The flag and the note of a film."""
        return self._found.get(image_id, (False, ""))

    @property
    def flagged(self) -> list[str]:
        """The ids of the flagged films, also of those that another panel flagged."""
        self._found = self._read()
        return [image_id for image_id, (flag, _) in self._found.items() if flag]

    def set(self, image_id: str, *, flag: bool, note: str) -> None:
        """Writes the flag and the note of a film; others that were written meanwhile stay.

        Raises:
            OSError: the file cannot be written, or the run is being trained or scored.
            ValueError: the folder has another run now.
        """
        with self._run.lock(wait=_WAIT):
            self._found = self._read()
            self._found[image_id] = (flag, " ".join(note.split()))
            rows = [
                (one, int(its_flag), its_note)
                for one, (its_flag, its_note) in sorted(self._found.items())
                if its_flag or its_note
            ]
            self._run.write_table(_NAME, pd.DataFrame(rows, columns=_COLUMNS))

    def _read(self) -> dict[str, tuple[bool, str]]:
        path = self._run.folder / _NAME
        if not path.is_file():
            return {}
        table = read_table(path, dtype=str, na_values=[])
        refuse(path, set(_COLUMNS) - set(table), "missing columns", ", ".join(_COLUMNS))
        rows = zip(table["image_id"], table["flag"], table["note"], strict=True)
        return {image_id: (flag == "1", note) for image_id, flag, note in rows}
