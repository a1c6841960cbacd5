"""Images side by side, with a prompt beside each row and a heading above each column."""

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

_SMALLEST, _LARGEST = 1.5, 3.5  # inches of a cell's longer side


def image_grid(
    path: Path,
    rows: Sequence[Sequence[ImageLike | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """Write images to a PNG file as a table. None, or a short row, leaves a cell empty.

    Labels, such as prompts, and headings are one for each row and column, or none at all. FigureError without an image.
    """
    images = [[None if image is None else _image(image) for image in row] for row in rows]
    sizes = np.array([image.size for row in images for image in row if image is not None])
    if not len(sizes):
        raise FigureError(f"{path}: there is no image to show")
    side = float(np.clip(sizes.max() / 144, _SMALLEST, _LARGEST))
    width, height = (sizes.max(0) / sizes.max() * side).tolist()
    columns = max(map(len, images))
    with drawing(
        path, (1.8 if row_labels else 0.0) + columns * (width + 0.1), len(images) * (height + 0.1) + 0.3
    ) as figure:
        cells = figure.subplots(len(images), columns, squeeze=False)
        for axes in cells.flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for row, line in zip(cells, images, strict=True):
            for axes, image in zip(row, line, strict=False):
                if image is not None:
                    axes.imshow(image)
        for axes, heading in zip(cells[0], column_labels, strict=False):
            axes.set_title(textwrap.fill(heading, 24), loc="center")
        for axes, label in zip(cells[:, 0], row_labels, strict=False):
            text = textwrap.fill(label, 24, max_lines=8, placeholder="…")
            axes.set_ylabel(text, rotation=0, horizontalalignment="right", verticalalignment="center")


def _image(image: ImageLike) -> Image.Image:
    """Convert to RGB, with transparent pixels on white."""
    if isinstance(image, Tensor):
        return to_image(image.detach().float())
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
