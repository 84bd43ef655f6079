import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from chexnet.figures import blend, header_text, overlay_cam
from chexnet.figures.overlay import show_colors, show_film


def film(rows: int = 60, columns: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns), dtype=np.uint8)


def boxes(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["x", "y", "width", "height"])


def drawn_pixels(figure: Figure) -> np.ndarray:
    """The figure as a person sees it, uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_where_the_map_is_not_above_zero_the_film_is_untouched():
    # Never again, 6: a map below zero everywhere, divided by its maximum, glowed.
    pixels = film()
    for cam in (np.full((4, 3), -2.0), np.array([[-3.0, -0.01], [-1.0, -9.0]]), np.zeros((2, 2))):
        for scale in (None, 1.0):
            np.testing.assert_array_equal(
                blend(pixels, cam, scale=scale), np.repeat(pixels[..., None], 3, axis=-1)
            )


def test_heat_on_white_never_wraps_around_to_black():
    # Never again, 6: uint8 + uint8, and heat of 0 to 255 on a film of 0 to 1.
    white = np.full((64, 64), 255, np.uint8)
    ramp = np.linspace(0, 5, 64)[None]
    for colormap in ("heat", "jet", "gray"):
        mixed = blend(white, ramp, scale=5, colormap=colormap, opacity=0.5)
        assert mixed.dtype == np.uint8
        assert mixed.min() >= 127  # half of white is kept at the least
    assert blend(white, ramp, colormap="gray", opacity=1)[0, -1].tolist() == [255, 255, 255]


def test_colour_of_the_hottest_spot():
    """The hottest spot has the last colour at the stated opacity; half the heat has far less."""
    mixed = blend(np.zeros((8, 8), np.uint8), np.full((2, 2), 3.0), scale=3, colormap="gray")
    assert (mixed == round(0.65 * 255)).all()
    half = blend(np.zeros((8, 8), np.uint8), np.full((2, 2), 1.5), scale=3, colormap="gray")
    assert 0 < half.max() < mixed.max() / 2


def test_heat_in_grey_print():
    """More heat is never darker on black, but for rounding, so a grey print keeps the order."""
    ramp = np.linspace(0, 1, 256)[None]
    mixed = blend(np.zeros((1, 256), np.uint8), ramp, scale=1)[0].astype(float)
    luminance = mixed @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -1).all()
    assert luminance[-1] > luminance[128] > luminance[0] == 0


def test_place_of_the_heat():
    """Heat lies in the quarter of the film where the map has it."""
    pixels = np.zeros((60, 40), np.uint8)
    cam = np.full((6, 4), -1.0)
    cam[4, 0] = 5.0  # low and to the left: a film upside down or transposed would show
    heat = blend(pixels, cam).sum(-1)
    rows, columns = np.nonzero(heat)
    assert rows.min() > 30
    assert columns.max() < 20


def test_film_is_upright_and_in_proportion():
    """A film is drawn upright and with square pixels, whatever the axes."""
    pixels = np.zeros((60, 40), np.uint8)
    pixels[:20, :10] = 255  # upper left
    figure = Figure(figsize=(6, 3), dpi=100)
    figure.set_facecolor("#00ff00")
    ax = show_film(pixels, ax=figure.add_axes([0, 0, 1, 1]))
    seen = drawn_pixels(figure).astype(int)
    on_film = seen[..., 1] - seen[..., 0] < 128  # not the green around it
    rows, columns = np.nonzero(on_film)
    assert (np.ptp(rows) + 1) / (np.ptp(columns) + 1) == pytest.approx(60 / 40, rel=0.02)
    bright_rows, bright_columns = np.nonzero(on_film & (seen.sum(-1) > 600))
    assert bright_rows.max() < rows.min() + np.ptp(rows) * 0.36
    assert bright_columns.max() < columns.min() + np.ptp(columns) * 0.28
    assert ax.get_ylim() == (60, 0)


def test_a_dark_film_is_not_stretched_to_white():
    figure = Figure(figsize=(1, 1), dpi=50)
    show_film(
        np.linspace(0, 60, 400).reshape(20, 20).astype(np.uint8), ax=figure.add_axes([0, 0, 1, 1])
    )
    assert drawn_pixels(figure).max() <= 60


def test_a_box_is_drawn_at_x_y_with_width_and_height_in_blue():
    # Never again, 7: x, y, w, h taken for two corners.
    figure = overlay_cam(film(), np.full((3, 2), -1.0), boxes((5, 10, 20, 30), (1, 2, 3, 4)))
    found = [(*p.get_xy(), p.get_width(), p.get_height()) for p in figure.axes[0].patches]
    assert found == [(5, 10, 20, 30), (1, 2, 3, 4)]
    red, green, blue = (
        int(to_hex(figure.axes[0].patches[0].get_edgecolor())[i : i + 2], 16) for i in (1, 3, 5)
    )
    assert blue > green > red


def test_a_box_that_reaches_beyond_the_film_does_not_shrink_it():
    ax = show_film(film(), boxes((-10, -20, 200, 300)))
    drawn_pixels(ax.figure)
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 40), (60, 0))


def test_edges_of_a_box():
    """The blue of a box is seen at its edges, and the film inside."""
    figure = Figure(figsize=(4, 4), dpi=100)  # 4 screen pixels a film pixel
    pixels = np.full((100, 100), 128, np.uint8)
    show_film(pixels, boxes((20, 40, 50, 30)), figure.add_axes([0, 0, 1, 1]))
    seen = drawn_pixels(figure).astype(int)
    blue = seen[..., 2] - seen[..., 0] > 100
    rows, columns = np.nonzero(blue)
    assert np.allclose([columns.min(), columns.max()], [80, 280], atol=3)
    assert np.allclose([rows.min(), rows.max()], [160, 280], atol=3)
    assert not blue[200:240, 120:240].any()


def test_line_at_the_map_threshold():
    """The line runs where the map reaches the threshold, if it does, and is solid."""
    cam = np.full((8, 8), -1.0)
    cam[2, 5] = 4.0
    figure = overlay_cam(film(80, 80), cam, scale=4, threshold=2)
    (line,) = figure.axes[0].collections
    path = np.concatenate(line.get_paths()[0].to_polygons())
    assert np.allclose(path.mean(0), [55, 25], atol=2)  # the centre of the cell: x, y
    assert line.get_linestyle() == [(0.0, None)]
    assert not overlay_cam(film(80, 80), cam, scale=4, threshold=20).axes[0].collections
    assert not overlay_cam(film(80, 80), cam, scale=4).axes[0].collections


def test_it_draws_into_the_axes_it_is_given():
    figure = Figure()
    ax = figure.subplots()
    assert overlay_cam(film(), np.ones((2, 2)), ax=ax) is figure
    assert ax.images


def test_what_is_no_film_no_map_or_no_colour_is_refused():
    with pytest.raises(ValueError, match=r"film is float64 \(4, 4\)"):
        blend(np.zeros((4, 4)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"map has shape \(1, 2, 2\)"):
        blend(film(), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"opacity=1\.5"):
        blend(film(), np.zeros((2, 2)), opacity=1.5)
    with pytest.raises(ValueError, match="'rainbow2' is not a valid value"):
        blend(film(), np.zeros((2, 2)), colormap="rainbow2")


def test_the_colours_beside_a_figure_are_those_on_a_grey_film():
    ax = Figure().subplots()
    show_colors(ax, scale=4.0)
    shown = ax.images[0].get_array()
    assert shown[0, 0].tolist() == [110, 110, 110]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0 or less", "2", "4 or more"]
    assert ax.get_xlim() == (0, 4)


def test_a_header_says_what_is_known_and_nothing_else():
    film = pd.Series({"view": "PA", "sex": "F", "age": 54})
    assert header_text(film) == "PA · F · 54 y"
    assert header_text(film.drop("sex")) == "PA · 54 y"
    assert header_text(pd.Series({"view": None, "sex": "M", "age": np.nan})) == "M"
    assert header_text(pd.Series({"image_id": "a"})) == ""
