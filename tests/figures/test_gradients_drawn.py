"""The figure of gradients shows each step's numbers in its place, and nothing that was not given."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from figures.test_comparison import NAN, data, lines, refused
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from customized_grpo.figures.canvas import IDENTITY, PROMPT, FigureError
from customized_grpo.figures.gradients import gradient_evidence


def test_cosines_stand_at_their_steps_with_their_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    naive = [(1.0, -0.1, -0.3, 0.1), (0.75, 0.0, -0.2, 0.2), (0.5, 0.3, 0.31, 0.5)]  # the last outside its interval
    shaped = [(sigma, value + 0.4, low + 0.4, high + 0.4) for sigma, value, low, high in naive]
    gradient_evidence(tmp_path / "cosines.png", {"naive": naive, "shaped": shaped}, title="cosines")
    (axes,) = drawn[0].axes
    found = lines(drawn[0])
    assert list(found) == ["naive", "shaped"] == [text.get_text() for text in axes.get_legend().get_texts()]
    for name, curve, segments in zip(found, (naive, shaped), axes.collections, strict=True):
        points = data(found[name])
        assert np.allclose(points[:, 1], [step[1] for step in curve])
        assert np.abs(points[:, 0] - [0, 1, 2]).max() < 0.25
        ends = np.array(segments.get_segments())  # type: ignore[attr-defined]
        assert np.allclose(ends[:, :, 1], [step[2:] for step in curve])
        assert np.allclose(ends[:, :, 0], points[:, :1])
    assert (data(found["naive"])[:, 0] < data(found["shaped"])[:, 0]).all()
    assert any(np.allclose(line.get_ydata(), 0) and np.size(line.get_ydata()) == 2 for line in axes.lines)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\n1.00", "1\n0.75", "2\n0.50"]


@pytest.mark.parametrize("steps", [1, 26, 27, 60, 200])
def test_the_noise_levels_do_not_run_into_each_other(tmp_path: Path, drawn: list[Figure], steps: int) -> None:
    gradient_evidence(tmp_path / "cosines.png", {"naive": [(1 - t / steps, 0.1, 0.0, 0.2) for t in range(steps)]})
    boxes = [label.get_window_extent() for label in drawn[0].axes[0].get_xticklabels()]
    assert all(left.x1 + 3 < right.x0 for left, right in pairwise(boxes))


def test_a_cosine_may_miss_one_by_rounding(tmp_path: Path, drawn: list[Figure]) -> None:
    over = 1 + 1e-9
    gradient_evidence(
        tmp_path / "cosines.png", {"same": [(1.0, over, over, over)], "opposite": [(1.0, -over, -over, -over)]}
    )
    assert list(lines(drawn[0])) == ["same", "opposite"]


STEP = (1.0, 0.1, 0.0, 0.2)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "no curve to draw"),
        ({"naive": []}, "'naive' has no step"),
        ({"naive": [STEP, (0.5, NAN, 0.0, 0.1)]}, "at step 1"),
        ({"naive": [(1.0, 0.1, NAN, 0.2)]}, "bounds in order"),
        ({"naive": [(1.0, 0.1, 0.2, 0.0)]}, "bounds in order"),
        ({"naive": [(1.0, 1.5, 0.0, 1.0)]}, "give cosines"),
        ({"naive": [(NAN, 0.1, 0.0, 0.2)]}, "noise level nan at step 0"),
        ({"naive": [STEP], "shaped": [STEP, STEP]}, "steps of 'shaped' are not those of 'naive'"),
        ({"naive": [STEP], "shaped": [(0.9, 0.1, 0.0, 0.2)]}, "steps of 'shaped' are not those of 'naive'"),
    ],
)
def test_cosines_that_cannot_be_drawn(
    tmp_path: Path, curves: dict[str, list[tuple[float, float, float, float]]], message: str
) -> None:
    refused(tmp_path, lambda path: gradient_evidence(path, curves), message)


def test_agreements_have_a_panel_and_the_colours_of_the_cosines(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = {"naive": [STEP], "shaped": [STEP]}
    small = {"naive": [(1.0, -0.01, -0.02, 0.0)], "shaped": [(1.0, 0.01, 0.0, 3.0)]}
    gradient_evidence(tmp_path / "evidence.png", curves, small, {"identity": [STEP]})
    above, below = lines(drawn[0], 0), lines(drawn[0], 1)
    assert {name: float(data(line)[0, 1]) for name, line in below.items()} == {"naive": -0.01, "shaped": 0.01}
    assert all(same_color(below[name].get_color(), above[name].get_color()) for name in curves)
    assert len(drawn[0].axes) == 3
    with pytest.raises(FigureError, match="steps of 'naive'"):
        gradient_evidence(tmp_path / "refused.png", curves, {"naive": [STEP, STEP]})


def test_strengths_have_a_panel_and_the_colours_of_their_roles(tmp_path: Path, drawn: list[Figure]) -> None:
    strengths = {"identity": [(1.0, 0.01, -0.01, 0.03)], "prompt": [(1.0, -0.002, -0.004, 0.001)]}
    gradient_evidence(tmp_path / "evidence.png", {"naive": [STEP]}, strengths=strengths)
    found = lines(drawn[0], 1)
    assert {name: float(data(line)[0, 1]) for name, line in found.items()} == {"identity": 0.01, "prompt": -0.002}
    assert same_color(found["identity"].get_color(), IDENTITY) and same_color(found["prompt"].get_color(), PROMPT)
    other = {"identity": [STEP, STEP]}
    with pytest.raises(FigureError, match="steps of 'identity'"):
        gradient_evidence(tmp_path / "refused.png", {"naive": [STEP]}, strengths=other)
