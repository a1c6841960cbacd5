"""Grids hold the very pictures that were given, aligned, on white, with room for their words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.figures import FigureError, Picture, image_grid


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def find(canvas: np.ndarray, pixels: np.ndarray) -> tuple[int, int]:
    """(y, x) of the one place where the picture stands pixel for pixel."""
    height, width = pixels.shape[:2]
    ys, xs = np.nonzero((canvas == pixels[0, 0]).all(axis=-1))
    places = [
        (int(y), int(x))
        for y, x in zip(ys, xs, strict=True)
        if np.array_equal(canvas[y : y + height, x : x + width], pixels)
    ]
    assert len(places) == 1
    return places[0]


def test_pictures_stand_pixel_for_pixel_in_aligned_rows_and_columns(tmp_path: Path) -> None:
    pixels = [[noise(48, 64, 10 * i + j) for j in range(3)] for i in range(2)]
    rows: list[list[Picture]] = [[Image.fromarray(row[0]), *map(tensor, row[1:])] for row in pixels]
    path = tmp_path / "new" / "grid.png"
    image_grid(path, rows, ["one prompt", "another"], ["reference", "base", "tuned"], scale=1)
    canvas = read(path)
    places = [[find(canvas, picture) for picture in row] for row in pixels]
    for i in range(2):
        assert len({y for y, _ in places[i]}) == 1
        assert all(b - a >= 64 for (_, a), (_, b) in zip(places[i], places[i][1:], strict=False))
    assert [x for _, x in places[0]] == [x for _, x in places[1]]
    assert (canvas[:, 0] == 255).all() and (canvas[-1] == 255).all()


def test_labels_are_written_on_the_left_above_and_over_all(tmp_path: Path) -> None:
    picture = noise(100, 100, 0)
    plain, labelled = tmp_path / "plain.png", tmp_path / "labelled.png"
    image_grid(plain, [[tensor(picture)]], scale=1)
    image_grid(labelled, [[tensor(picture)]], ["a red bird"], ["base"], scale=1, title="before")
    y0, x0 = find(read(plain), picture)
    y, x = find(read(labelled), picture)
    canvas = read(labelled)
    assert y > y0 + 30 and x > x0 + 40
    assert (canvas[y : y + 100, :x] < 60).any()  # beside
    assert (canvas[y - 24 : y, x : x + 100] < 60).any()  # above
    assert (canvas[: y - 24] < 60).any()  # over all
    assert (read(plain)[:y0] == 255).all() and (read(plain)[:, :x0] == 255).all()


def test_small_pictures_grow_by_a_whole_factor_in_square_pixels(tmp_path: Path) -> None:
    picture = noise(64, 64, 1)
    image_grid(tmp_path / "grid.png", [[tensor(picture)]])
    find(read(tmp_path / "grid.png"), picture.repeat(3, axis=0).repeat(3, axis=1))


def test_large_pictures_shrink_and_shapes_are_kept(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (1024, 1024), "red"), Image.new("RGB", (300, 600), "blue")
    image_grid(tmp_path / "grid.png", [[red, blue]])
    canvas = read(tmp_path / "grid.png")
    ys, xs = np.nonzero((canvas == (255, 0, 0)).all(axis=-1))
    assert (int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1) == (512, 512)
    ys, xs = np.nonzero((canvas == (0, 0, 255)).all(axis=-1))
    assert (int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1) == (512, 256)


def test_short_rows_and_none_leave_white_cells(tmp_path: Path) -> None:
    pixels = [noise(40, 40, seed) for seed in range(3)]
    a, b, c = map(tensor, pixels)
    image_grid(tmp_path / "grid.png", [[a, None, b], [c]], scale=1)
    canvas = read(tmp_path / "grid.png")
    (y, x), (_, right), (below, _) = (find(canvas, picture) for picture in pixels)
    assert (canvas[y : y + 40, x + 40 : right] == 255).all()
    assert (canvas[below : below + 40, x + 40 :] == 255).all()


def test_long_prompts_wrap_beside_their_row_and_never_touch_the_pictures(tmp_path: Path) -> None:
    pictures = [noise(192, 192, seed) for seed in range(2)]
    prompt = "an extraordinarily-long-winded " * 40 + "x" * 300
    image_grid(tmp_path / "grid.png", [[tensor(p)] for p in pictures], [prompt, "b"], scale=1)
    canvas = read(tmp_path / "grid.png")
    (y, x), (below, _) = (find(canvas, picture) for picture in pictures)
    assert (canvas[:, x - 4 : x] == 255).all()
    assert (canvas[y + 192 : below] == 255).all()


def test_transparent_and_grey_pictures_are_shown_on_white(tmp_path: Path) -> None:
    image_grid(
        tmp_path / "grid.png",
        [[Image.new("RGBA", (200, 200), (255, 0, 0, 0)), Image.new("L", (200, 200), 77)]],
    )
    canvas = read(tmp_path / "grid.png")
    assert (canvas == 77).all(axis=-1).sum() == 200 * 200
    assert (canvas == 255).all(axis=-1).sum() == canvas.shape[0] * canvas.shape[1] - 200 * 200


def test_values_are_rounded_not_cut(tmp_path: Path) -> None:
    picture = torch.tensor([-0.01, 0.4999, 1.0001]).view(3, 1, 1).expand(3, 200, 200)
    image_grid(tmp_path / "grid.png", [[picture.to(torch.float64)]])
    assert (read(tmp_path / "grid.png") == (0, 127, 255)).all(axis=-1).sum() == 200 * 200


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no picture to draw"),
        ([[None]], {}, "no picture to draw"),
        ([[torch.zeros(3, 4, 4)]], {"row_labels": ["a", "b"]}, "2 row labels for 1 rows"),
        ([[torch.zeros(3, 4, 4)]], {"column_labels": ["a", "b"]}, "2 column labels for 1 columns"),
        ([[torch.zeros(3, 4, 4)]], {"scale": 0.0}, "scale must be above 0"),
        ([[torch.zeros(1, 4, 4)]], {}, "row 0, column 0 is torch.float32 \\(1, 4, 4\\)"),
        ([[torch.zeros(3, 4, 4, dtype=torch.uint8)]], {}, "give a floating tensor"),
        ([[torch.full((3, 4, 4), torch.nan)]], {}, "not finite"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path, rows: list[list[torch.Tensor]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(FigureError, match=message) as caught:
        image_grid(tmp_path / "grid.png", rows, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
