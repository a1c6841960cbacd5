"""Figures of a study show its rows' numbers, each in its place, and nothing that was not given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import same_color, to_hex, to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from customized_grpo.figures.canvas import BOTH_NEGATIVE, BOTH_POSITIVE, CONFLICTED, GREY, PALETTE, FigureError
from customized_grpo.figures.comparison import learning_curves, quadrant_bars

NAN = float("nan")
ROWS = [f"row {i} of a study with names" for i in range(14)]
METRICS = ["identity", "prompt", "identity (independent)", "prompt (independent)", "copy-paste"]
SEEDS = [[(0, 50.0), (10, 55.0), (20, 60.0)], [(20, 24.0), (0, 20.0), (10, 23.0)]]
"""+10 and +20%, and, not in order, +15 and +20%."""


def study() -> dict[str, dict[str, list[list[tuple[int, float]]]]]:
    rng = np.random.default_rng(0)
    return {
        metric: {row: [[(t, 20 + t / 10 + rng.normal()) for t in range(0, 50, 10)] for _ in range(3)] for row in ROWS}
        for metric in METRICS
    }


def lines(figure: Figure, panel: int = 0) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in figure.axes[panel].lines if str(line.get_label())[0] != "_"}


def data(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xydata())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def pixels_of(path: Path, colour: str) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        levels = np.asarray(image.convert("RGB"))
    return int((np.abs(levels - np.round(np.array(to_rgb(colour)) * 255)).max(axis=-1) <= 1).sum())


def test_a_line_is_the_mean_change_over_each_seeds_own_base(tmp_path: Path, drawn: list[Figure]) -> None:
    learning_curves(tmp_path / "new" / "curves.png", {"identity": {"ours": SEEDS}})
    (axes,) = drawn[0].axes
    assert np.allclose(data(lines(drawn[0])["ours"]), [(0, 0), (10, 12.5), (20, 20)])
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(np.round(corner, 6)) for corner in np.asarray(band)} == {(0, 0), (10, 10), (10, 15), (20, 20)}
    assert axes.get_ylabel() == "change over the base (%)" and axes.get_title(loc="left") == "Identity"


def test_a_gain_over_a_negative_base_is_up(tmp_path: Path, drawn: list[Figure]) -> None:
    learning_curves(tmp_path / "curves.png", {"identity": {"ours": [[(0, -2.0), (5, -1.0)]]}})
    assert np.allclose(data(lines(drawn[0])["ours"]), [(0, 0), (5, 50)])


def test_scores_are_shown_as_they_are_where_told(tmp_path: Path, drawn: list[Figure]) -> None:
    seeds = [[(10, 0.0), (20, 0.4)], [(10, 0.2), (20, 0.2)]]  # with no base, nor need of one
    learning_curves(
        tmp_path / "curves.png", {"identity": {"a": SEEDS}, "copy-paste": {"a": seeds}}, absolute=["copy-paste"]
    )
    assert np.allclose(data(lines(drawn[0], 1)["a"]), [(10, 0.1), (20, 0.3)])
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["change over the base (%)", "score"]


def test_a_row_is_drawn_where_all_its_seeds_are(tmp_path: Path, drawn: list[Figure]) -> None:
    seeds = [[(0, 10.0), (5, 11.0), (10, 30.0)], [(0, 10.0), (5, 13.0)]]
    learning_curves(tmp_path / "curves.png", {"identity": {"a": seeds}})
    assert np.allclose(data(lines(drawn[0])["a"]), [(0, 0), (5, 20)])


def test_highlighted_rows_keep_their_colour_in_all_panels_and_others_are_thin_and_grey(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    panels = study()
    del panels["prompt"][ROWS[3]]
    learning_curves(tmp_path / "curves.png", panels, "all", highlight=[ROWS[9], ROWS[3]])
    for panel in range(len(METRICS)):
        found = lines(drawn[0], panel)
        assert found.keys() == panels[METRICS[panel]].keys()
        thin = {line.get_linewidth() for row, line in found.items() if row not in (ROWS[3], ROWS[9])}
        assert all(same_color(found[row].get_color(), GREY) for row in ROWS if row not in (ROWS[3], ROWS[9]))
        assert same_color(found[ROWS[9]].get_color(), PALETTE[1]) and found[ROWS[9]].get_linewidth() > max(thin)
        assert len(drawn[0].axes[panel].collections) == (1 if METRICS[panel] == "prompt" else 2)  # the bands
    assert legend(drawn[0]) == [ROWS[3], ROWS[9], "12 other rows"]


def test_fourteen_rows_look_different_and_the_legend_lies_outside_the_panels(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    learning_curves(tmp_path / "curves.png", study())
    (figure,) = drawn
    assert legend(figure) == ROWS
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in lines(figure).values()}
    assert len(looks) == 14
    box = figure.legends[0].get_window_extent()
    width, height = figure.canvas.get_width_height()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    for axes in figure.axes:
        panel = axes.get_tightbbox()
        assert panel is not None and panel.y0 >= box.y1
        assert axes.get_window_extent().height > 150  # the legend has not eaten the panels


@pytest.mark.parametrize("curve", [[(0, 5.0)], [(0, 5.0), (10, 6.0)]])
def test_one_seed_and_one_iteration_are_enough(tmp_path: Path, curve: list[tuple[int, float]]) -> None:
    learning_curves(tmp_path / "curves.png", {"identity": {"a": [curve]}})
    assert pixels_of(tmp_path / "curves.png", PALETTE[0]) > 20


@pytest.mark.parametrize(
    ("panels", "options", "message"),
    [
        ({}, {}, "no curve to draw"),
        ({"identity": {}}, {}, "no curve to draw"),
        ({"identity": {"a": SEEDS}, "prompt": {}}, {}, "prompt has no row"),
        ({"identity": {"a": []}}, {}, "no iteration that all of the 0 seeds have"),
        ({"identity": {"a": [[(0, 1.0)], []]}}, {"absolute": ["identity"]}, "all of the 2 seeds"),
        ({"identity": {"a": [[(0, 1.0), (0, 2.0)]]}}, {}, "'a', seed 1 of 1: an iteration comes twice"),
        ({"identity": {"a": [*SEEDS, [(0, 1.0), (5, NAN)]]}}, {}, "seed 3 of 3: a score is not finite"),
        ({"identity": {"a": [[(5, 1.0)]]}}, {}, "no score at iteration 0"),
        ({"identity": {"a": [[(0, 0.0), (5, 1.0)]]}}, {}, "is zero at iteration 0"),
        ({"identity": {"a": SEEDS}}, {"highlight": ["b"]}, "highlight holds 'b'"),
        ({"identity": {"a": SEEDS}}, {"absolute": ["prompt"]}, "absolute holds 'prompt'"),
    ],
)
def test_curves_that_cannot_be_drawn(
    tmp_path: Path,
    panels: dict[str, dict[str, list[list[tuple[int, float]]]]],
    options: dict[str, list[str]],
    message: str,
) -> None:
    refused(tmp_path, lambda path: learning_curves(path, panels, **options), message)  # type: ignore[arg-type]


def refused(folder: Path, draw: Callable[[Path], None], message: str) -> None:
    with pytest.raises(FigureError, match=message) as caught:
        draw(folder / "figure.png")
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())


def bars(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """(left, width) of each row's part, by the part's name."""
    containers = [part for part in figure.axes[0].containers if isinstance(part, BarContainer)]
    return {str(c.get_label()): [(bar.get_x(), bar.get_width()) for bar in c.patches] for c in containers}


def test_bars_stack_the_shares_and_tell_them(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "bars.png"
    quadrant_bars(path, {"independent noise": (50, 25, 25), "paper": (50.2, 26.8, 23.0)}, "signs")
    (axes,) = drawn[0].axes
    found = bars(drawn[0])
    assert found.keys() == {"conflicted", "both positive", "both negative"}
    assert np.allclose(found["conflicted"], [(0, 50), (0, 50.2)])
    assert np.allclose(found["both positive"], [(50, 25), (50.2, 26.8)])
    assert np.allclose(found["both negative"], [(75, 25), (77, 23)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["independent noise", "paper"]
    assert axes.yaxis_inverted()  # the first row is the uppermost
    told = {text.get_text(): text.get_position() for text in axes.texts}
    assert told["26.8"] == pytest.approx((50.2 + 13.4, 1)) and told["50.0"] == (25, 0)
    assert legend(drawn[0]) == ["conflicted", "both positive", "both negative"]
    areas = [pixels_of(path, colour) for colour in (CONFLICTED, BOTH_POSITIVE, BOTH_NEGATIVE)]
    assert areas[0] / areas[1] == pytest.approx(100.2 / 51.8, rel=0.1)
    assert areas[2] / areas[1] == pytest.approx(48 / 51.8, rel=0.1)


def test_images_without_a_signal_are_the_rest_of_the_bar(tmp_path: Path, drawn: list[Figure]) -> None:
    quadrant_bars(tmp_path / "bars.png", {"a": (40.0, 10.0, 20.0), "b": (50.0, 25.0, 25.1)})
    assert np.allclose(bars(drawn[0])["no signal"], [(70, 30), (100, 0)])


def test_numbers_stay_inside_their_parts(tmp_path: Path, drawn: list[Figure]) -> None:
    quadrant_bars(tmp_path / "bars.png", {"a row of twenty-five chars": (90.5, 5.0, 4.5), "b": (97.0, 2.0, 1.0)})
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["90.5", "97.0", "5.0", "4.5"]
    for text in axes.texts:
        share = float(text.get_text())
        left, right = (axes.transData.transform((text.get_position()[0] + side * share / 2, 0))[0] for side in (-1, 1))
        box = text.get_window_extent()
        assert left < box.x0 and box.x1 < right


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "no shares"),
        ({"a": (50.0, 25.0, NAN)}, "'a' are"),
        ({"a": (60.0, -5.0, 45.0)}, "give three of 0 to 100"),
        ({"a": (60.0, 25.0, 25.0)}, "100 together"),
        ({"a": (50.0, 50.0)}, "give three"),
        ({"ours": (50.0, 25.0, 25.0), "a": (0.5, 0.25, 0.25)}, "'a' are .* fractions of 1"),
    ],
)
def test_shares_that_cannot_be_drawn(
    tmp_path: Path, shares: dict[str, tuple[float, float, float]], message: str
) -> None:
    refused(tmp_path, lambda path: quadrant_bars(path, shares), message)
