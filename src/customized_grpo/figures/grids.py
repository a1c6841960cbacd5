"""Images side by side on white, each row with its prompt and each column with its heading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from customized_grpo.figures.canvas import FONT, INK, FigureError
from customized_grpo.utils.records import write_bytes

Picture = Image.Image | Tensor
"""A PIL image of any mode and size, or a floating tensor (3, H, W) in [0, 1]."""

_LEAST, _MOST = 192, 512  # pixels of a cell's longer side, where no scale is given
_LABEL_WIDTHS = (1.0, 1.5, 2.5)  # of a row's label, in cells: the first in which it fits


def image_grid(
    path: Path,
    rows: Sequence[Sequence[Picture | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    scale: float | None = None,
    title: str | None = None,
) -> None:
    """Write pictures as a table, PNG.

    All cells are of one size, that of the largest picture times `scale`; each picture fills its
    cell as far as its shape allows, centred. A picture that needs no resizing is shown pixel for
    pixel, one that grows by a whole factor in square pixels, any other by Lanczos.

    Args:
        path: the PNG to write; its folder is made.
        rows: pictures; None leaves a cell empty, and so do the missing ones of a short row.
        row_labels: one for each row (prompts, wrapped, on its left), or none at all.
        column_labels: one for each column, above it, or none at all.
        scale: size of a cell over that of the largest picture. Where none is given, cells have
            192 to 512 pixels on their longer side.
        title: a line over all.

    Raises:
        FigureError: if there is no picture, labels and pictures differ in number, the scale is
            not positive, or a tensor is not floating, finite and (3, H, W).
    """
    width = max((len(row) for row in rows), default=0)
    _check_count("row", row_labels, len(rows))
    _check_count("column", column_labels, width)
    images = [
        [None if picture is None else _image(picture, f"row {i}, column {j}") for j, picture in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    sizes = [image.size for row in images for image in row if image is not None]
    if not sizes:
        raise FigureError(f"{path}: no picture to draw; give at least one")
    wide, high = max(w for w, _ in sizes), max(h for _, h in sizes)
    factor = _readable(max(wide, high)) if scale is None else scale
    if not (math.isfinite(factor) and factor > 0):
        raise FigureError(f"{path}: scale must be above 0, not {factor}")
    cell = (max(1, round(wide * factor)), max(1, round(high * factor)))

    side = max(cell)
    size = min(32, max(13, side // 12))
    gap, margin = max(4, side // 32), max(8, side // 16)
    small, bold, large = _font(size), _font(size, bold=True), _font(size * 5 // 4, bold=True)

    label_width, labels = _row_labels(row_labels, small, cell, side)
    left = margin + (label_width + 2 * gap if row_labels else 0)
    right = left + width * (cell[0] + gap) - gap
    headings = [_wrap(label, bold, cell[0]) for label in column_labels]
    title_lines = _wrap(title, large, right - margin) if title else []

    head = max((len(lines) for lines in headings), default=0) * _line(bold)
    title_height = len(title_lines) * _line(large)
    top = margin + (title_height + gap if title_lines else 0) + (head + gap if head else 0)
    bottom = top + len(rows) * (cell[1] + gap) - gap

    canvas = Image.new("RGB", (right + margin, bottom + margin), "white")
    draw = ImageDraw.Draw(canvas)
    _text(draw, title_lines, large, margin, margin)
    for j, lines in enumerate(headings):
        # Headings stand on their pictures: a short one next to a long one keeps its distance.
        _text(
            draw,
            lines,
            bold,
            left + j * (cell[0] + gap),
            top - gap - len(lines) * _line(bold),
            cell[0],
        )
    for i, row in enumerate(images):
        y = top + i * (cell[1] + gap)
        if labels:
            _text(draw, labels[i], small, margin, y + (cell[1] - len(labels[i]) * _line(small)) // 2)
        for j, image in enumerate(row):
            if image is not None:
                fitted = _fit(image, cell)
                x = left + j * (cell[0] + gap)
                canvas.paste(fitted, (x + (cell[0] - fitted.width) // 2, y + (cell[1] - fitted.height) // 2))
    buffer = BytesIO()
    canvas.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def _check_count(kind: str, labels: Sequence[str], count: int) -> None:
    if labels and len(labels) != count:
        raise FigureError(f"{len(labels)} {kind} labels for {count} {kind}s; give one for each or none")


def _readable(side: int) -> float:
    """How much larger to show pictures whose longer side has that many pixels."""
    if side < _LEAST:
        return float(math.ceil(_LEAST / side))
    return min(1.0, _MOST / side)


def _image(picture: Picture, where: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    if not (picture.is_floating_point() and picture.ndim == 3 and picture.shape[0] == 3):
        raise FigureError(
            f"picture in {where} is {picture.dtype} {tuple(picture.shape)}; give a floating tensor (3, H, W) in [0, 1]"
        )
    if not bool(picture.isfinite().all()):
        raise FigureError(f"picture in {where} holds values that are not finite")
    levels = picture.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _fit(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    factor = min(cell[0] / image.width, cell[1] / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if size == image.size:
        return image
    whole = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    file = findfont(FontProperties(family=FONT, weight="bold" if bold else "normal"))
    return ImageFont.truetype(file, size)


def _line(font: ImageFont.FreeTypeFont) -> int:
    return math.ceil(font.size * 1.25)


def _row_labels(
    texts: Sequence[str], font: ImageFont.FreeTypeFont, cell: tuple[int, int], side: int
) -> tuple[int, list[list[str]]]:
    """Width of the labels' column in pixels and the lines of each label, no higher than a cell."""
    if not texts:
        return 0, []
    room = max(1, cell[1] // _line(font))
    for relative in _LABEL_WIDTHS:
        # By the longer side: flat or narrow pictures have no use for a flat or narrow label.
        wrapped = [_wrap(text, font, round(relative * side)) for text in texts]
        if all(len(lines) <= room for lines in wrapped):
            break
    labels = [lines if len(lines) <= room else [*lines[: room - 1], lines[room - 1] + "…"] for lines in wrapped]
    width = max((font.getlength(line) for lines in labels for line in lines), default=0)
    return math.ceil(width), labels


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words, inside a word that is too long."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        line = word
        while len(line) > 1 and font.getlength(line) > width:
            cut = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line] if line else lines


def _text(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    x: float,
    y: float,
    centred_in: int | None = None,
) -> None:
    for i, line in enumerate(lines):
        shift = 0.0 if centred_in is None else (centred_in - font.getlength(line)) / 2
        draw.text((x + shift, y + i * _line(font)), line, fill=INK, font=font)
