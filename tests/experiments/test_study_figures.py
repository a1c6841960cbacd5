"""Figures of a study show each row's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from customized_grpo.figures.style import FigureError
from experiments.study.figures import draw_gradients, learning_curves, quadrant_bars
from experiments.study.gradients import AtStep, Evidence, Strength

SEEDS = [[(0, 50.0), (10, 55.0), (20, 60.0)], [(10, 23.0), (0, 20.0)]]
STEPS = [
    AtStep(step=0, sigma=1.0, value=-0.1, low=-0.3, high=0.1),
    AtStep(step=1, sigma=0.75, value=0.0, low=-0.2, high=0.2),
    AtStep(step=2, sigma=0.5, value=0.3, low=0.31, high=0.5),
]


def test_a_line_is_the_mean_over_seeds_of_the_change_over_the_base(tmp_path: Path, saved: list[Figure]) -> None:
    panels = {"identity": {"ours": SEEDS, "other": SEEDS[:1]}, "copy-paste": {"ours": [[(10, 0.0), (20, 0.4)]]}}
    learning_curves(tmp_path / "curves.png", panels, "all", highlight=["ours"], absolute=["copy-paste"])
    changes, absolute = saved[0].axes
    lines = {str(line.get_label()): line.get_xydata() for line in changes.lines}
    assert np.allclose(lines["ours"], [(0, 0), (10, 12.5)]) and np.allclose(lines["other"][-1], (20, 20))
    band = changes.collections[0].get_paths()[0].vertices
    assert {tuple(np.round(corner, 6)) for corner in np.asarray(band)} == {(0, 0), (10, 10), (10, 15)}
    assert np.allclose(absolute.lines[0].get_xydata(), [(10, 0), (20, 0.4)])
    assert [text.get_text() for text in saved[0].legends[0].get_texts()] == ["ours", "1 other row"]


def test_scores_are_plotted_over_minutes_where_seconds_are_known(tmp_path: Path, saved: list[Figure]) -> None:
    learning_curves(tmp_path / "curves.png", {"identity": {"ours": SEEDS}}, seconds={"ours": 30.0})
    (axes,) = saved[0].axes
    assert np.allclose(axes.lines[1].get_xydata(), [(0, 0), (5, 12.5)]) and axes.get_xlabel() == "minutes of training"


@pytest.mark.parametrize("seeds", [[], [[(0, 1.0)], [(5, 1.0)]], [[(5, 1.0)]], [[(0, 0.0), (5, 1.0)]]])
def test_seeds_without_a_common_base_are_refused(tmp_path: Path, seeds: list[list[tuple[int, float]]]) -> None:
    with pytest.raises(FigureError, match="share no iteration"):
        learning_curves(tmp_path / "curves.png", {"identity": {"a": seeds}})
    assert not list(tmp_path.iterdir())


def test_bars_stack_the_shares_and_the_rest_is_no_signal(tmp_path: Path, saved: list[Figure]) -> None:
    quadrant_bars(tmp_path / "bars.png", {"noise": (50, 25, 25), "ours": (40.0, 10.0, 2.0)})
    (axes,) = saved[0].axes
    found = {part.get_label(): part.patches for part in axes.containers if isinstance(part, BarContainer)}
    starts = {name: [(bar.get_x(), bar.get_width()) for bar in bars] for name, bars in found.items()}
    assert np.allclose(starts["both negative"], [(75, 25), (50, 2)])
    assert np.allclose(starts["no signal"], [(100, 0), (52, 48)])
    assert sorted(text.get_text() for text in axes.texts) == ["", "10.0", "25.0", "25.0", "40.0", "50.0"]


def test_gradients_have_their_intervals_at_each_step(tmp_path: Path, saved: list[Figure]) -> None:
    strengths = [Strength(weight=0.5, **dict(at)) for at in STEPS]
    curves = {"cosines": {"naive": STEPS}, "agreements": {"naive": STEPS}, "strengths": {"prompt": strengths}}
    draw_gradients(tmp_path / "evidence.png", Evidence(settings={}, batches=2, **curves))
    assert len(saved[0].axes) == 3
    for axes in saved[0].axes:
        line = next(line for line in axes.lines if line.get_label() in ("naive", "prompt"))
        assert np.allclose(line.get_xydata(), [(0, -0.1), (1, 0.0), (2, 0.3)])
        ends = np.array(axes.collections[0].get_segments())  # type: ignore[attr-defined]
        assert np.allclose(ends[:, :, 1], [(at.low, at.high) for at in STEPS])
    assert [label.get_text() for label in saved[0].axes[0].get_xticklabels()] == ["0\n1.00", "1\n0.75", "2\n0.50"]
