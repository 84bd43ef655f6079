"""One way to show a table in a notebook or a terminal."""

import hashlib
from collections.abc import Iterable
from numbers import Integral, Real

import pandas as pd
from pandas.io.formats.style import Styler

from chexnet.files import flat

_NUMBER = [
    ("text-align", "right"), ("white-space", "nowrap"), ("font-variant-numeric", "tabular-nums"),
]  # fmt: skip
_TEXT = [("text-align", "left"), ("white-space", "normal"), ("max-width", "48em")]
_NUMERIC = r"^(?:[<≥]?\s?[-−+]?[\d,]+(?:\.\d+)?(?:e[-+]\d+)?\s?%?(?: \(.*\))?|–|)$"


class ShownTable:
    """A table of text that Jupyter shows as HTML and a terminal as text.

    Attributes:
        text: every cell as it is shown.
    """

    def __init__(self, text: pd.DataFrame) -> None:
        """Takes the cells as text."""
        self.text = text

    def __repr__(self) -> str:
        """All rows and columns, nothing clipped."""
        return self.text.to_string(index=bool(self.text.index.name))

    def _repr_html_(self) -> str:
        # Of the content: two tables on a page must not share their styles.
        name = hashlib.sha256(self.text.to_csv().encode()).hexdigest()[:8]
        style = Styler(self.text, uuid=name, cell_ids=False).format(escape="html")
        for axis in (0, 1):  # names of classes are heads of columns
            style = style.format_index(escape="html", axis=axis)
        for column, cells in self.text.items():
            look = _NUMBER if cells.str.fullmatch(_NUMERIC).all() else _TEXT
            rules = {"td": look, "th": [look[0]]}
            styles = [{"selector": part, "props": props} for part, props in rules.items()]
            style = style.set_table_styles({column: styles}, overwrite=False)
        if not self.text.index.name:
            style = style.hide(axis="index")
        return style.to_html()


def show_table(
    table: pd.DataFrame | pd.Series | dict, *, decimals: int = 2, hide: Iterable[str] = ()
) -> ShownTable:
    """Shows a whole table: nothing clipped, numbers aligned, missing values empty.

    Args:
        table: a table, whose index is shown if it has a name; or names and values, which become
            the rows of a table ``name, value``. A nested dict has one row for each of its values.
        decimals: of the numbers in columns of floats; single values have up to six digits.
        hide: columns that are not shown.

    Returns:
        an object that the last line of a cell, or ``print``, shows.

    Raises:
        KeyError: ``hide`` names a column that is not there.

    Example:
        >>> import pandas as pd
        >>> from chexnet.figures import show_table
        >>> show_table(pd.DataFrame({"group": ["AP", "PA"], "AUROC": [0.8512, None]}))
        group AUROC
           AP  0.85
           PA
    """
    if isinstance(table, pd.Series):
        table = table.to_dict()
    if isinstance(table, dict):
        rows = [(name, "None" if value is None else value) for name, value in flat(table).items()]
        table = pd.DataFrame(rows, columns=["name", "value"], dtype=object)
    table = table.drop(columns=list(hide))
    text = pd.DataFrame(
        {
            column: [
                _text(value, decimals if pd.api.types.is_float_dtype(values) else None)
                for value in values
            ]
            for column, values in table.items()
        },
        index=table.index.map(str),
        dtype=object,
    )
    text.index.name = table.index.name
    return ShownTable(text)


def _text(value: object, decimals: int | None) -> str:
    """One cell; ``decimals`` is None where the column is not one of floats."""
    if isinstance(value, list | tuple):
        return ", ".join(_text(one, None) for one in value)
    if value is None or value is pd.NA or (isinstance(value, Real) and value != value):
        return ""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return str(int(value))
    if decimals is None:
        return f"{float(value):g}"
    return f"{float(value):.{decimals}f}"
