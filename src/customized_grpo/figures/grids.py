"""Images side by side, with a prompt beside each row and a heading above each column."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from customized_grpo.figures.style import FigureError, drawing
from customized_grpo.utils.pixels import to_image

ImageLike = Image.Image | Tensor
"""A PIL image of any mode and size, or a floating-point tensor (3, H, W) in [0, 1]."""

_SMALLEST, _LARGEST = 192, 512  # pixels of a cell's longer side
_DPI = 144


def image_grid(
    path: Path,
    rows: Sequence[Sequence[ImageLike | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """Write images as a table. All cells have the size of the largest image, scaled to 192 to 512 pixels.

    An image that needs no scaling is copied pixel by pixel, one that grows by an integer factor keeps square pixels,
    and any other is resampled with Lanczos. None, or a short row, leaves a cell empty. FigureError without any image.
    """
    images = [[None if image is None else _image(image) for image in row] for row in rows]
    sizes = [image.size for row in images for image in row if image is not None]
    if not sizes:
        raise FigureError(f"{path}: there is no image to show")
    largest = np.array(sizes).max(0)
    side = int(largest.max())
    scale = math.ceil(_SMALLEST / side) if side < _SMALLEST else min(1.0, _LARGEST / side)
    cell_width, cell_height = (max(1, round(length * scale)) for length in largest.tolist())

    side = max(cell_width, cell_height)
    text = min(32, max(13, side // 12))  # pixels
    gap, margin, line = max(4, side // 32), max(8, side // 16), text * 1.25
    label_width = round(1.5 * side) if row_labels else 0
    letters = 0.58 * text  # mean width of a letter
    headings = [textwrap.wrap(label, max(1, int(cell_width / letters))) for label in column_labels]
    top = margin + round(line * max(map(len, headings), default=0)) + gap
    columns = max(len(row) for row in images)
    width = 2 * margin + label_width + columns * (cell_width + gap)
    height = top + len(images) * (cell_height + gap) + margin
    with drawing(path, width / _DPI, height / _DPI) as figure:
        place = {"fontsize": text * 72 / _DPI, "linespacing": 1.1, "transform": None}
        for j, lines in enumerate(headings):
            x = margin + label_width + j * (cell_width + gap) + cell_width / 2
            figure.text(x, height - top + gap, "\n".join(lines), weight="bold", ha="center", va="bottom", **place)
        for i, row in enumerate(images):
            bottom = height - top - i * (cell_height + gap) - cell_height
            if row_labels:
                wrapped = textwrap.wrap(
                    row_labels[i],
                    int(label_width / letters),
                    max_lines=max(1, int(cell_height / line)),
                    placeholder="…",
                )
                figure.text(margin, bottom + cell_height / 2, "\n".join(wrapped), va="center", **place)
            for j, image in enumerate(row):
                if image is not None:
                    fitted = _fit(image, cell_width, cell_height)
                    x = margin + label_width + j * (cell_width + gap) + (cell_width - fitted.width) // 2
                    figure.figimage(np.asarray(fitted), x, bottom + (cell_height - fitted.height) // 2)


def _image(image: ImageLike) -> Image.Image:
    """Convert to RGB, with transparent pixels on white."""
    if isinstance(image, Image.Image):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return to_image(image.detach().float())


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    factor = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    whole = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
