import numpy as np
import pandas as pd
import pytest

from chexnet.figures import show_table

TABLE = pd.DataFrame(
    {
        "group": ["AP", "a <b> " + "long " * 40, None],
        "n": [12, 3, 4],
        "estimate (95 % CI)": ["0.85 (0.80-0.90)", "-0.02 (-0.10 to 0.03)", "–"],
        "share": [0.12345, np.nan, 1],
        "age": pd.array([54, pd.NA, 3], dtype="Int64"),
    }
)


def test_nothing_is_clipped_and_nothing_is_called_nan():
    shown = show_table(TABLE)
    for words in (repr(shown), shown._repr_html_()):
        assert "long " * 39 in words
        assert not {"NaN", "nan", "<NA>", "None", "..."} & set(words.split())
    assert shown.text["share"].tolist() == ["0.12", "", "1.00"]
    assert shown.text["age"].tolist() == ["54", "", "3"]
    assert shown.text["group"].iloc[2] == ""


def test_two_hundred_rows_and_thirty_columns_are_all_shown():
    table = pd.DataFrame({f"column {n}": np.arange(200) for n in range(30)})
    words = repr(show_table(table))
    assert len(words.splitlines()) == 201
    assert words.splitlines()[0].split() == " ".join(table).split()
    assert show_table(table)._repr_html_().count("<tr>") == 201


def test_numbers_stand_right_and_words_left():
    html = show_table(TABLE)._repr_html_()
    where = {
        column: html.split(f"td.col{place} {{")[1].split("}")[0]
        for place, column in enumerate(TABLE)
    }
    assert all("right" in where[name] and "nowrap" in where[name] for name in list(TABLE)[1:])
    assert "left" in where["group"]
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_names_and_values_become_rows_also_nested():
    settings = {"model": {"stride": 16}, "rate": 3e-4, "size": (8, 8), "weights": None, "ok": True}
    shown = show_table(settings)
    assert shown.text.to_numpy().tolist() == [
        ["model.stride", "16"], ["rate", "0.0003"], ["size", "8, 8"], ["weights", "None"],
        ["ok", "True"],
    ]  # fmt: skip
    assert show_table(pd.Series({"AP": 3})).text.to_numpy().tolist() == [["AP", "3"]]


def test_a_named_index_is_shown_and_hidden_columns_are_not():
    groups = TABLE.dropna(subset="group").set_index("group")
    shown = show_table(groups, decimals=1, hide=["n", "age"])
    assert list(shown.text) == ["estimate (95 % CI)", "share"]
    assert repr(shown).splitlines()[2].split() == ["AP", "0.85", "(0.80-0.90)", "0.1"]
    assert "AP</th>" in shown._repr_html_()
    with pytest.raises(KeyError, match="nothing"):
        show_table(TABLE, hide=["nothing"])


def test_two_tables_on_a_page_have_their_own_style():
    first, second = (show_table(table)._repr_html_() for table in (TABLE, TABLE[["n"]]))
    assert first.split("T_")[1][:8] != second.split("T_")[1][:8]
    assert show_table(TABLE)._repr_html_() == first


def test_what_a_table_says_is_text_in_cells_heads_and_index():
    """Heads of columns hold names of classes, which come from a user's file."""
    name = "<img src=x onerror=alert(1)>"
    table = pd.DataFrame({name: [name], "n": [1]}, index=pd.Index([name], name="group"))
    html = show_table(table)._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img src=x") == 3
