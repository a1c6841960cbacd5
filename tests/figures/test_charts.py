"""Charts show what they are given, in their colours, and leave no state behind."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from customized_grpo.figures import (
    FigureError,
    identity_prompt_plane,
    planes_side_by_side,
    schedule,
    training_curves,
)
from customized_grpo.figures.canvas import (
    BOTH_NEGATIVE,
    BOTH_POSITIVE,
    CONFLICTED,
    IDENTITY,
    PROMPT,
    SILENT,
    TUNED,
)
from customized_grpo.figures.plane import journey

PUBLISHED = {
    "UNO": (0.760, 7.87),
    "Customized-GRPO": (0.812, 8.32),
    "naive GRPO 1:1": (0.861, 4.12),
    "naive GRPO 1:1.5": (0.801, 7.56),
    "OminiControl": (0.684, 8.28),
    "OmniGen": (0.693, 6.67),
    "FLUX.1 IP-Adapter": (0.582, 7.68),
    "SSR-Encoder": (0.612, 4.82),
    "ELITE": (0.647, 3.12),
}


def records(count: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    made: list[dict[str, object]] = []
    for i in range(1, count + 1):
        made.append(
            {
                "iteration": i,
                "identity/mean": 60 + i / 10 + rng.normal(),
                "identity/std": 2.0,
                "prompt/mean": 24 + i / 20,
                "prompt/std": 1.0,
                "share/conflicted": 0.5,
                "share/both_positive": 0.2,
                "share/both_negative": 0.3,
                "share/no_signal_identity": 0.0,
                "share/no_signal_prompt": 0.1,
                "clip_fraction": 0.2,
                "kl": i * 1e-6,
                "gradient_norm": float(np.exp(3 * rng.normal())),
                "seconds/sampling": 3.0,
                "seconds/scoring": 1.0,
                "seconds/updating": 5.0,
                "seconds/total": 9.5,
            }
        )
        if i % 5 == 1:
            made[-1] |= {"evaluation/identity/mean": 50.0 + i, "evaluation/other/mean": 3.0}
    return made


def pixels_of(path: Path, colour: str) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        levels = np.asarray(image.convert("RGB"))
    wanted = np.round(np.array(to_rgb(colour)) * 255)
    return int((np.abs(levels - wanted).max(axis=-1) <= 1).sum())


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def test_a_run_shows_all_its_panels_in_their_colours(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "curves.png"
    training_curves(path, records(30), title="a run that costs $5 or $6")
    assert titles(drawn[0]) == [
        "Identity reward",
        "Prompt reward",
        "Scores of the evaluation",
        "Signs of the two advantages",
        "How far the policy moves",
        "Gradient norm",
        "Time of an iteration",
    ]
    for colour in (IDENTITY, PROMPT, CONFLICTED, BOTH_POSITIVE, BOTH_NEGATIVE):
        assert pixels_of(path, colour) > 200
    with Image.open(path) as image:
        assert image.size == drawn[0].canvas.get_width_height()


def test_areas_take_their_share_of_the_panel(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    quadrants = [{k: v for k, v in r.items() if "/no_signal" not in k} for r in records(20)]
    training_curves(path, [{k: v for k, v in r.items() if k == "iteration" or "share/" in k} for r in quadrants])
    conflicted, positive, negative = (pixels_of(path, colour) for colour in (CONFLICTED, BOTH_POSITIVE, BOTH_NEGATIVE))
    # The words and lines over them take a little of each.
    assert conflicted / positive == pytest.approx(50 / 20, rel=0.15)
    assert negative / positive == pytest.approx(30 / 20, rel=0.15)


def test_held_out_scores_are_changes_since_the_first(tmp_path: Path, drawn: list[Figure]) -> None:
    made: list[dict[str, object]] = [
        {"iteration": 0, "evaluation/identity (independent)/mean": 40.0},
        {"iteration": 1, "kl": None},
        {"iteration": 5, "evaluation/identity (independent)/mean": 44.0},
    ]
    training_curves(tmp_path / "curves.png", made)
    curve = drawn[0].axes[0].lines[-1]
    assert curve.get_label() == "identity (independent): 40 → 44"
    assert np.allclose(curve.get_xydata(), [(0, 0), (5, 10)])


def test_guards_have_a_panel_of_their_own_unit(tmp_path: Path, drawn: list[Figure]) -> None:
    made = [{"iteration": i, "evaluation/a/mean": 10.0 + i, "evaluation/copy/mean": 0.01 + i} for i in range(3)]
    training_curves(tmp_path / "curves.png", made, guards=["copy"])
    assert titles(drawn[0]) == ["Scores of the evaluation", "Guards"]
    changes, watched = drawn[0].axes
    assert [str(line.get_label()).split(":")[0] for line in changes.lines[1:]] == ["a"]
    assert np.allclose(watched.lines[0].get_ydata(), [0.01, 1.01, 2.01])


def test_missing_keys_are_not_drawn_and_null_breaks_the_curve(tmp_path: Path, drawn: list[Figure]) -> None:
    made: list[dict[str, object]] = [{"iteration": i, "gradient_norm": None if i == 3 else 1.0 + i} for i in range(6)]
    made[4].pop("gradient_norm")
    training_curves(tmp_path / "curves.png", made)
    assert titles(drawn[0]) == ["Gradient norm"]
    data = np.asarray(drawn[0].axes[0].lines[0].get_xydata())
    assert data[:, 0].tolist() == [0, 1, 2, 3, 5]
    assert np.isnan(data[:, 1]).tolist() == [False, False, False, True, False]


def test_the_running_mean_is_over_past_iterations(tmp_path: Path, drawn: list[Figure]) -> None:
    made = [{"iteration": i, "prompt/mean": float(i)} for i in range(12)]
    training_curves(tmp_path / "curves.png", made)
    smooth = drawn[0].axes[0].lines[1].get_ydata()
    assert np.allclose(smooth, [0, 0.5, *range(1, 11)])


def test_one_record_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    training_curves(path, records(1))
    assert pixels_of(path, IDENTITY) > 20 and pixels_of(path, CONFLICTED) > 1000


def test_several_rewards_of_a_role_have_a_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    made = [{"iteration": i, **{f"reward/{n}/mean": 1.0 + i for n in "abc"}} for i in range(3)]
    training_curves(tmp_path / "curves.png", made)
    assert titles(drawn[0]) == ["Rewards, one by one"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "hold nothing to draw"),
        ([{"iteration": 1, "loss": 0.1, "kl": None}], "hold nothing to draw"),
        ([{"iteration": 1}, {"kl": 1.0}], "record 2 has no iteration"),
    ],
)
def test_records_without_anything_to_draw(tmp_path: Path, made: list[dict[str, object]], message: str) -> None:
    with pytest.raises(FigureError, match=message):
        training_curves(tmp_path / "curves.png", made)
    assert not list(tmp_path.iterdir())


def boxes(figure: Figure, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    return {t.get_text(): tuple(t.get_window_extent().extents) for t in figure.axes[0].texts if t.get_text() in names}


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_names_on_the_plane_cover_neither_each_other_nor_a_point(
    tmp_path: Path, drawn: list[Figure], seed: int | None
) -> None:
    points = PUBLISHED
    if seed is not None:  # as many models within a tenth of the plane, and two outside it
        rng = np.random.default_rng(seed)
        points = {f"model {i}": tuple(rng.uniform(0.45, 0.55, 2)) for i in range(6)}
        points |= {"base": (0.0, 0.0), "tuned": (1.0, 1.0)}
    identity_prompt_plane(tmp_path / "plane.png", points, arrow=("UNO", "Customized-GRPO"))
    found = boxes(drawn[0], list(points))
    assert found.keys() == points.keys()
    axes = drawn[0].axes[0]
    frame = axes.get_window_extent()
    centres = axes.transData.transform(list(points.values()))
    for name, (x0, y0, x1, y1) in found.items():
        assert frame.x0 <= x0 and x1 <= frame.x1 and frame.y0 <= y0 and y1 <= frame.y1
        for x, y in centres:
            assert not (x0 - 4 < x < x1 + 4 and y0 - 4 < y < y1 + 4)
        for other, (a0, b0, a1, b1) in found.items():
            assert name == other or x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0


def test_the_plane_joins_base_and_tuned_and_shows_intervals_and_front(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "plane.png"
    identity_prompt_plane(
        path,
        {"base": (60.0, 24.0), "tuned": (63.0, 25.0)},
        intervals={"tuned": ((62.5, 63.6), (24.8, 25.1))},
        title="held-out",
        front=[(58.0, 24.5), (60.0, 24.0), (62.0, 22.0)],
    )
    axes = drawn[0].axes[0]
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [((60.0, 24.0), (63.0, 25.0))]
    curves = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert [[58.0, 24.5], [60.0, 24.0], [62.0, 22.0]] in curves
    assert [[62.5, 25.0], [63.6, 25.0]] in curves and [[63.0, 24.8], [63.0, 25.1]] in curves
    assert pixels_of(path, TUNED) > 50


def test_published_points_have_a_plane_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "planes.png"
    measured = {"base": (60.0, 24.0), "tuned": (63.0, 25.0)}
    planes_side_by_side(
        path,
        measured,
        {"tuned": ((62.5, 63.6), (24.8, 25.1))},
        PUBLISHED,
        labels=("DINO-I", "CLIP-T"),
        published_labels=("DINO", "HPS"),
        titles=("measured", "published"),
        caveat="as published",
    )
    left, right = drawn[0].axes
    names = [{text.get_text() for text in axes.texts} for axes in (left, right)]
    assert names == [set(measured), set(PUBLISHED)]
    assert (left.get_xlabel(), right.get_xlabel()) == ("DINO-I (higher is better)", "DINO (higher is better)")
    assert [62.5, 25.0] in [np.asarray(line.get_xydata()).tolist()[0] for line in left.lines]
    assert "as published" in {text.get_text() for text in drawn[0].texts} | {drawn[0].get_supxlabel()}
    with pytest.raises(FigureError, match="no point"):
        planes_side_by_side(
            path, measured, {}, {}, labels=("", ""), published_labels=("", ""), titles=("", ""), caveat=""
        )


def test_one_point_is_a_plane_too(tmp_path: Path, drawn: list[Figure]) -> None:
    identity_prompt_plane(tmp_path / "plane.png", {"base": (0.0, 0.0)})
    assert "base" in boxes(drawn[0], ["base"])


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ({}, {}, "no point"),
        ({"a": (1.0, float("nan"))}, {}, "a lies at"),
        ({"a": (1.0, 1.0)}, {"front": [(float("inf"), 1.0)]}, "front lies at"),
        ({"a": (1.0, 1.0)}, {"intervals": {"b": ((0, 2), (0, 2))}}, "'b', which is no point"),
        ({"a": (1.0, 1.0)}, {"intervals": {"a": ((0, 2), (2, 3))}}, "outside its interval 2..3"),
    ],
)
def test_points_that_cannot_be_drawn(
    tmp_path: Path, points: dict[str, tuple[float, float]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(FigureError, match=message):
        identity_prompt_plane(tmp_path / "plane.png", points, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_schedule_shows_both_weights_and_the_noise(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "weights.png"
    prompt = torch.tensor([0.7, 0.5, 0.3])
    schedule(path, prompt, 1 - prompt, sigmas=[1.0, 0.8, 0.4, 0.0], title="TDW")
    left, right = drawn[0].axes
    assert np.allclose(left.lines[0].get_ydata(), [0.7, 0.5, 0.3])
    assert np.allclose(left.lines[1].get_ydata(), [0.3, 0.5, 0.7])
    assert np.allclose(right.lines[0].get_ydata(), [1.0, 0.8, 0.4, 0.0])
    assert pixels_of(path, IDENTITY) > 50 and pixels_of(path, PROMPT) > 50


def test_a_schedule_whose_lengths_disagree(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="3 prompt and 2 identity weights"):
        schedule(tmp_path / "weights.png", [1, 2, 3], [1, 2])
    with pytest.raises(FigureError, match="5 noise levels for 3 steps"):
        schedule(tmp_path / "weights.png", [1, 2, 3], [1, 2, 3], sigmas=[1] * 5)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    # Asking for the backend would have one chosen, and import pyplot.
    keys = [key for key in matplotlib.rcParams if key != "backend"]
    before = {key: matplotlib.rcParams[key] for key in keys}
    schedule(tmp_path / "weights.png", [0.5], [0.5])
    assert {key: matplotlib.rcParams[key] for key in keys} == before
    assert "matplotlib.pyplot" not in sys.modules


def test_an_old_picture_stays_whole_where_a_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "weights.png"
    schedule(path, [0.5], [0.5])
    before = path.read_bytes()
    with pytest.raises(FigureError):
        schedule(path, [], [])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_journey_joins_its_stations_and_names_the_ends(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["base", *(f"iteration {i}" for i in range(10, 190, 10)), "tuned"]
    points = {name: (40.0 + i, 60.0 + i % 3) for i, name in enumerate(names)}
    journey(tmp_path / "plane.svg", points)
    axes = drawn[0].axes[0]
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    stations = list(points.values())
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == list(pairwise(stations))
    told = [text.get_text() for text in axes.texts if text.get_text()]
    assert told[0] == "base" and told[-1] == "tuned" and len(told) <= 9, "not all of many are named"


def test_equal_figures_give_equal_svgs_whose_words_are_words(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        schedule(tmp_path / name, [0.7, 0.3], [0.3, 0.7])
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert ">weight of the reward</text>" in (tmp_path / "one.svg").read_text(encoding="utf-8")


def test_silent_groups_fill_what_the_quadrants_leave(tmp_path: Path) -> None:
    shares = {"share/conflicted": 0.3, "share/both_positive": 0.2, "share/both_negative": 0.1}
    training_curves(tmp_path / "curves.png", [{"iteration": i, **shares} for i in range(5)])
    silent, positive = (pixels_of(tmp_path / "curves.png", colour) for colour in (SILENT, BOTH_POSITIVE))
    assert silent / positive == pytest.approx(40 / 20, rel=0.2)
