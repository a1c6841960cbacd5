"""Figures show the data they are given. Nothing is written if the data cannot be shown."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
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


@pytest.mark.parametrize("count", [1, 12])
def test_curves_have_a_panel_for_each_kind_of_metric(tmp_path: Path, saved: list[Figure], count: int) -> None:
    training_curves(tmp_path / "new" / "curves.png", records(count), "costs $5", guards=["copy"])
    panels = dict(zip(titles(saved[0]), [axes for axes in saved[0].axes if axes.get_title(loc="left")], strict=True))
    assert list(panels) == [
        "Identity reward", "Prompt reward", "Scores of the evaluation", "Guards", "Signs of the two advantages",
        "Diversity in a group", "Distance from the reference policy", "Clipped ratios", "Gradient norm",
        "Learning rate", "Time of an iteration",
    ]  # fmt: skip
    if count > 1:
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


def names(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_points_that_have_one_colour_have_different_markers(tmp_path: Path, saved: list[Figure]) -> None:
    points = {f"model {i}": (float(i), float(i)) for i in range(13)}
    identity_prompt_plane(tmp_path / "plane.png", points)
    (axes,) = saved[0].axes
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert names(axes) == list(points) and len(looks) == len(points)


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
    assert [names(axes) for axes in saved[1].axes] == [list(points), list(PUBLISHED)]
    identity_prompt_plane(tmp_path / "same.png", {"base": (1.0, 1.0), "tuned": (1.0, 1.0)})


def test_a_journey_joins_its_stations_and_names_the_ends() -> None:
    stations = ["base", *(f"iteration {i}" for i in range(10, 190, 10)), "tuned"]
    points = {name: (40.0 + i, 60.0 + i % 3) for i, name in enumerate(stations)}
    axes = Figure().add_subplot()
    draw_journey(axes, points, ("identity", "prompt"))
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == list(pairwise(points.values()))
    assert names(axes) == ["base", "tuned"]


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find(grid: np.ndarray, pixels: np.ndarray) -> tuple[int, int]:
    """Return (y, x) of the only place where these pixels are."""
    height, width = pixels.shape[:2]
    places = np.argwhere((grid == pixels[0, 0]).all(-1))
    (place,) = [(y, x) for y, x in places.tolist() if np.array_equal(grid[y : y + height, x : x + width], pixels)]
    return place


def test_images_are_copied_pixel_by_pixel_into_aligned_cells(tmp_path: Path) -> None:
    pixels = [[noise(192, 256, 10 * i + j) for j in range(3)] for i in range(2)]
    tensors = [[torch.from_numpy(one).permute(2, 0, 1).float() / 255 for one in row] for row in pixels]
    prompt = "an extraordinarily-long-winded " * 40 + "x" * 300
    rows = [[Image.fromarray(pixels[0][0]), *tensors[0][1:]], [tensors[1][0], None, tensors[1][2]]]
    image_grid(tmp_path / "grid.png", rows, [prompt, "b"], ["reference", "base", "tuned"])
    grid = read(tmp_path / "grid.png")
    places = [find(grid, pixels[i][j]) for i, j in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2))]
    (y, x), (_, middle), (_, right), (below, _), _ = places
    assert places == [(y, x), (y, middle), (y, right), (below, x), (below, right)]
    assert (grid[below : below + 192, middle : middle + 256] == 255).all(), "an empty cell"
    assert (grid[y:, x - 4 : x] == 255).all(), "a long prompt ends before the images"
    assert (grid[:y, x : x + 256] < 60).any() and (grid[y : y + 192, :x] < 60).any(), "a heading and a label"


def test_small_images_grow_in_square_pixels_and_shapes_are_preserved(tmp_path: Path) -> None:
    small = noise(64, 64, 1)
    image_grid(tmp_path / "small.png", [[Image.fromarray(small)]])
    find(read(tmp_path / "small.png"), small.repeat(3, axis=0).repeat(3, axis=1))
    transparent = Image.new("RGBA", (1024, 1024), (255, 0, 0, 0))
    image_grid(tmp_path / "large.png", [[Image.new("RGB", (300, 600), "blue"), transparent]])
    grid = read(tmp_path / "large.png")
    ys, xs = np.nonzero((grid == (0, 0, 255)).all(axis=-1))
    assert (int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1) == (512, 256)
    assert ((grid == 255).all(-1) | (grid == (0, 0, 255)).all(-1)).all(), "transparent is white"
