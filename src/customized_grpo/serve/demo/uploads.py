"""Photos and masks that a stranger sent: read by the project's own safe reader, told of by their own names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from customized_grpo.data.errors import DataError
from customized_grpo.data.pictures import load, load_mask
from customized_grpo.serve.demo.studio import MOST_REFERENCES, AskError

#: Bytes of one file. Pixels are bounded by `data.pictures`.
MOST_BYTES = 20 * 2**20


def read_photos(paths: Sequence[Path]) -> list[Image.Image]:
    """The photos, RGB. Raises AskError where one is too large, damaged, no picture, or there are too many."""
    if len(paths) > MOST_REFERENCES:
        raise AskError(f"{len(paths)} files are too many: give at most {MOST_REFERENCES}.")
    return [_read(path, load) for path in paths]


def rewrite_photos(paths: Sequence[Path]) -> list[Image.Image]:
    """The photos, as `read_photos`. Their files hold nothing but the decoded pixels from then on, as PNG.

    They keep their names, for a drawing may have been asked for by these. Where any is refused, all are removed.
    """
    try:
        photos = read_photos(paths)
    except AskError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    for path, photo in zip(paths, photos, strict=True):
        plain = photo.copy()
        plain.info.clear()
        plain.save(path, format="PNG", compress_level=1)
    return photos


def read_masks(paths: Sequence[Path], photos: Sequence[Image.Image]) -> list[Image.Image]:
    """The masks of the first photos, in their sizes. Raises AskError as `read_photos`, and for more than photos."""
    if len(paths) > len(photos):
        raise AskError("There are more masks than photos: give one for each photo at most.")
    return [
        _read(path, partial(load_mask, size=photo.size))
        for path, photo in zip(paths, photos[: len(paths)], strict=True)
    ]


def _read(path: Path, reader: Callable[[Path], Image.Image]) -> Image.Image:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise AskError(f"{path.name}: more than {MOST_BYTES // 2**20} MB; reduce it")
        return reader(path)
    except OSError as error:
        raise AskError(f"{path.name}: is no longer there; drop it again") from error
    except DataError as error:
        raise AskError(str(error).replace(str(path), path.name)) from error
