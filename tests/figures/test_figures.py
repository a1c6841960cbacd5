"""Figures show the data they are given. Nothing is written if the data cannot be shown."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from customized_grpo.figures.curves import training_curves
from customized_grpo.figures.grids import image_grid
from customized_grpo.figures.plane import draw_journey, identity_prompt_plane, planes_side_by_side
from customized_grpo.figures.schedule import schedule
from customized_grpo.figures.style import FigureError

PUBLISHED = {"UNO": (0.760, 7.87), "Customized-GRPO": (0.812, 8.32), "naive 1:1": (0.861, 4.12), "SSR": (0.612, 4.82)}


def records(count: int) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for i in range(1, count + 1):
        roles = {"identity/mean": 60.0 + i, "identity/std": 2.0, "prompt/mean": float(i)}
        shares = {"share/conflicted": 0.5, "share/both_positive": 0.2, "share/both_negative": 0.1}
        seconds = {"seconds/sampling": 3.0, "seconds/scoring": 1.0, "seconds/updating": 5.0, "seconds/total": 9.5}
        steps = {"clip_fraction": 0.2, "kl": i * 1e-6, "gradient_norm": 10.0**i, "diversity": 0.1}
        made.append({"iteration": i, **roles, **shares, **seconds, **steps, "learning_rate": 1e-5})
    made[0] |= {"evaluation/identity/mean": 40.0, "evaluation/copy/mean": 0.01}
    made[-1] |= {"evaluation/identity/mean": 44.0, "evaluation/copy/mean": 2.0}
    return made


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def test_curves_have_a_panel_for_each_kind_of_metric(tmp_path: Path, saved: list[Figure]) -> None:
    training_curves(tmp_path / "new" / "curves.png", records(12), "costs $5", guards=["copy"])
    panels = dict(zip(titles(saved[0]), [axes for axes in saved[0].axes if axes.get_title(loc="left")], strict=True))
    assert list(panels) == [
        "Identity reward", "Prompt reward", "Scores of the evaluation", "Guards", "Signs of the two advantages",
        "Diversity in a group", "Distance from the reference policy", "Clipped ratios", "Gradient norm",
        "Learning rate", "Time of an iteration",
    ]  # fmt: skip
    smooth = panels["Prompt reward"].lines[1].get_ydata()
    assert np.allclose(smooth, [1, 1.5, *range(2, 12)]), "a mean over past iterations only"
    changes = panels["Scores of the evaluation"].lines[-1]
    assert changes.get_label() == "identity: 40 → 44" and np.allclose(changes.get_ydata(), [0, 10])
    assert np.allclose(panels["Guards"].lines[0].get_ydata(), [0.01, 2])
    with Image.open(tmp_path / "new" / "curves.png") as image:
        assert image.format == "PNG" and image.width > 1000


def test_null_breaks_a_curve_and_a_missing_key_does_not(tmp_path: Path, saved: list[Figure]) -> None:
    made: list[dict[str, object]] = [{"iteration": i, "gradient_norm": None if i == 3 else 1.0 + i} for i in range(6)]
    made[4].pop("gradient_norm")
    training_curves(tmp_path / "curves.png", made)
    xs, ys = np.asarray(saved[0].axes[0].lines[0].get_xydata()).T
    assert xs.tolist() == [0, 1, 2, 3, 5]
    assert np.isnan(ys).tolist() == [False, False, False, True, False]


def test_data_that_cannot_be_shown_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    schedule(path, [0.5], [0.5])
    before = path.read_bytes()
    with pytest.raises(FigureError, match="contain no metric"):
        training_curves(path, [{"iteration": 1, "kl": None}])
    with pytest.raises(FigureError, match="not all finite"):
        identity_prompt_plane(path, {"a": (1.0, float("nan"))})
    with pytest.raises(FigureError, match="no model"):
        identity_prompt_plane(path, {})
    with pytest.raises(FigureError, match="no image"):
        image_grid(path, [[None]])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_schedule_shows_both_weights_and_the_noise(tmp_path: Path, saved: list[Figure]) -> None:
    keys = [key for key in matplotlib.rcParams if key != "backend"]
    before = {key: matplotlib.rcParams[key] for key in keys}
    prompt = torch.tensor([0.7, 0.5, 0.3])
    schedule(tmp_path / "weights.png", prompt, 1 - prompt, sigmas=[1.0, 0.8, 0.4, 0.0], title="TDW")
    left, right = saved[0].axes
    assert np.allclose(left.lines[0].get_ydata(), [0.7, 0.5, 0.3])
    assert np.allclose(left.lines[1].get_ydata(), [0.3, 0.5, 0.7])
    assert np.allclose(right.lines[0].get_ydata(), [1.0, 0.8, 0.4, 0.0])
    assert {key: matplotlib.rcParams[key] for key in keys} == before, "the style stays in the figure"


@pytest.mark.parametrize("crowded", [False, True])
def test_names_on_the_plane_cover_neither_each_other_nor_a_point(
    tmp_path: Path, saved: list[Figure], crowded: bool
) -> None:
    points = PUBLISHED
    if crowded:
        rng = np.random.default_rng(0)
        points = {f"model {i}": tuple(rng.uniform(0.45, 0.55, 2)) for i in range(6)}
        points |= {"base": (0.0, 0.0), "tuned": (1.0, 1.0)}
    identity_prompt_plane(tmp_path / "plane.png", points)
    (axes,) = saved[0].axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert boxes.keys() == points.keys()
    for box in boxes.values():
        assert axes.get_window_extent().contains(*box.min) and axes.get_window_extent().contains(*box.max)
        assert not any(box.padded(3).contains(*center) for center in axes.transData.transform(list(points.values())))
        assert sum(box.overlaps(other) for other in boxes.values()) == 1, "itself"


def test_the_plane_joins_base_and_tuned_and_shows_intervals_and_a_front(tmp_path: Path, saved: list[Figure]) -> None:
    front = [(58.0, 24.5), (60.0, 24.0), (62.0, 22.0)]
    points, intervals = {"base": (60.0, 24.0), "tuned": (63.0, 25.0)}, {"tuned": ((62.5, 63.6), (24.8, 25.1))}
    identity_prompt_plane(tmp_path / "plane.png", points, intervals, "held-out", front)
    (axes,) = saved[0].axes
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [((60.0, 24.0), (63.0, 25.0))]
    curves = [[tuple(point) for point in line.get_xydata()] for line in axes.lines]
    assert front in curves and [(62.5, 25.0), (63.6, 25.0)] in curves and [(63.0, 24.8), (63.0, 25.1)] in curves
    planes_side_by_side(
        tmp_path / "planes.png", points, intervals, PUBLISHED, labels=("DINO-I", "CLIP-T"), caveat="as published",
        published_labels=("DINO", "HPS"), titles=("measured", "published"),
    )  # fmt: skip
    assert [{text.get_text() for text in axes.texts} for axes in saved[1].axes] == [set(points), set(PUBLISHED)]
    identity_prompt_plane(tmp_path / "same.png", {"base": (1.0, 1.0), "tuned": (1.0, 1.0)})


def test_a_journey_joins_its_stations_and_names_the_ends() -> None:
    names = ["base", *(f"iteration {i}" for i in range(10, 190, 10)), "tuned"]
    points = {name: (40.0 + i, 60.0 + i % 3) for i, name in enumerate(names)}
    axes = Figure().add_subplot()
    draw_journey(axes, points, ("identity", "prompt"))
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == list(pairwise(points.values()))
    named = [text.get_text() for text in axes.texts if text.get_text()]
    assert named[0] == "base" and named[-1] == "tuned" and len(named) <= 9


def test_a_grid_shows_images_of_any_kind_with_labels_and_headings(tmp_path: Path, saved: list[Figure]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    transparent = Image.new("RGBA", (96, 64), (255, 0, 0, 0))
    prompt = "an extraordinarily-long-winded " * 40
    rows = [[Image.fromarray(pixels), tensor, None], [transparent]]
    image_grid(tmp_path / "grid.png", rows, [prompt, "b"], ["reference", "base", "tuned"])
    cells = np.array(saved[0].axes).reshape(2, 3)
    shown = [[[np.asarray(image.get_array()) for image in axes.images] for axes in row] for row in cells]
    assert [[len(images) for images in row] for row in shown] == [[1, 1, 0], [1, 0, 0]]
    assert np.array_equal(shown[0][0][0], pixels) and np.array_equal(shown[0][1][0], pixels)
    assert (shown[1][0][0] == 255).all(), "transparent is white"
    assert [axes.get_title(loc="center") for axes in cells[0]] == ["reference", "base", "tuned"]
    assert cells[0, 0].get_ylabel().endswith("…") and cells[1, 0].get_ylabel() == "b"
    box = cells[0, 0].yaxis.label.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= cells[0, 0].get_window_extent().x0, "a long prompt ends before the images"
