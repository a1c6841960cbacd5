"""Pictures and masks from files nobody has vouched for: decoded safely, upright, of one mode."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from customized_grpo.data.errors import DataError

#: The only formats tried. Others that Pillow knows start programs (EPS) or are rarely exercised.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Pictures of more pixels are refused before anything is decoded.
MAX_PIXELS = 2**26
#: Larger photos are reduced to this longest side as they are loaded: no model here looks closer.
LONGEST_SIDE = 2048

#: A file, its content, or what Pillow has read already.
Source = Path | bytes | Image.Image


def load(source: Source, where: str | None = None) -> Image.Image:
    """The picture in `source`: mode RGB, upright by its EXIF, at most `LONGEST_SIDE` long.

    Transparency is laid over white, 16-bit grey is scaled to 8 bits, of an animation the first
    frame is taken. Raises DataError, one line that names the file, or says `where` the source is, where it is missing,
    empty, no image, damaged, or larger than `MAX_PIXELS`.
    """
    with _opened(source, where) as image:
        if image is not source:  # the caller's own stays as it is
            # JPEG alone: decodes huge photos at 1/2, 1/4 or 1/8 of their size.
            image.draft(None, (LONGEST_SIDE, LONGEST_SIDE))
        picture = _rgb(_upright(image))
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        return picture


def load_mask(source: Source, size: tuple[int, int], where: str | None = None) -> Image.Image:
    """The mask in `source`: mode L, 0 and 255 alone, of its reference's `size` (width, height).

    A picture with a varying alpha channel is a mask by its alpha, any other by its brightness;
    values 0 and 1 count as 0 and 255. Raises DataError as `load` does, and where the mask marks
    nothing.
    """
    where = where or str(source)
    with _opened(source, where) as image:
        mask = _mask(_upright(image)).resize(size, Image.Resampling.BILINEAR)
        binary = mask.point([0] * 128 + [255] * 128)
        if binary.getbbox() is None:
            raise DataError([f"{where}: the mask marks no pixel; draw the subject in white on black"])
        return binary


def check(path: Path, *, quick: bool = False) -> None:
    """Raises DataError where `load` would.

    JPEGs are decoded from end to end at an eighth of their size, others in full. `quick` spares
    others the decoding: PNGs are held against their checksums, the rest of the formats by their
    headers.
    """
    with _opened(path) as image:
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (1, 1))
        elif quick:
            image.verify()
            return
        _rgb(_upright(image))


def check_suffix(path: Path, option: str) -> None:
    """Raises DataError, before there is anything to write, where `path`, which `option` gave, names no picture."""
    if Image.registered_extensions().get(path.suffix.lower()) not in FORMATS:
        raise DataError([f"{option} {path}: no name of a picture; give one that ends in .png"])


def check_mask(path: Path) -> None:
    """Raises DataError where `load_mask` would, at the mask's own size."""
    with _opened(path) as image:
        size = _upright(image).size
    load_mask(path, size)


def problems(paths: Iterable[Path], checker: Callable[[Path], None]) -> dict[Path, str]:
    """What `checker` (`check` or `check_mask`) finds wrong, by path; several files at a time."""

    def find(path: Path) -> str | None:
        try:
            checker(path)
        except DataError as error:
            return str(error)
        return None

    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(thread_name_prefix="pictures") as pool:
        found = zip(distinct, pool.map(find, distinct), strict=True)
        return {path: problem for path, problem in found if problem is not None}


@contextmanager
def _opened(source: Source, where: str | None = None) -> Iterator[Image.Image]:
    """The source opened, its size checked; what goes wrong inside becomes one line that says where it is."""
    where = where or str(source)
    try:
        if isinstance(source, Path):
            _check_there(source, where)
        with _image(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(where, f"{image.width} x {image.height} pixels")
            yield image
    except DataError:
        raise
    except PermissionError as error:
        raise DataError([f"{where}: may not be read; grant read permission"]) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(where, "far too many pixels") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise DataError([f"{where}: not an image of a known format; convert it to one of {known}"]) from error
    except Exception as error:
        # Pillow's decoders raise a dozen types on damaged files: OSError, SyntaxError,
        # struct.error, ...
        reason = str(error) or type(error).__name__
        raise DataError([f"{where}: does not decode ({reason}); replace the file"]) from error


def _image(source: Source) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _check_there(path: Path, where: str) -> None:
    """Raises DataError where there is no file with something in it."""
    try:
        if not path.exists():
            raise DataError([f"{where}: no such file; correct the path or restore the file"])
        if not path.is_file():
            raise DataError([f"{where}: not a file; give the path of an image"])
        if path.stat().st_size == 0:
            raise DataError([f"{where}: the file is empty; replace it"])
    except PermissionError:
        raise
    except OSError as error:  # a name too long, a loop of links
        raise DataError([f"{where}: cannot be read ({error.strerror}); correct the path"]) from error


def _too_large(where: str, size: str) -> DataError:
    return DataError([f"{where}: {size}, above the bound of {MAX_PIXELS // 10**6} million; reduce it"])


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    if _is_deep(image):
        return _shallow(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _mask(image: Image.Image) -> Image.Image:
    if _is_deep(image):
        grey = _shallow(image)
    else:
        grey = image.convert("RGB").convert("L")
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
            least, most = alpha.getextrema()
            grey = alpha if least != most else grey
    if grey.getextrema()[1] == 1:
        return grey.point([0] + [255] * 255)
    return grey


def _is_deep(image: Image.Image) -> bool:
    """More than 8 bits of grey, which Pillow's own conversion to RGB would clip, not scale."""
    return image.mode == "F" or image.mode.startswith("I")


def _shallow(image: Image.Image) -> Image.Image:
    """8-bit grey of 16 bits; of 32 bits by the least range that holds them: 1, 255 or 65535."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        highest = float(values.max())
        if values.min() < 0 or highest > ranges[-1]:
            raise ValueError("its values lie outside 0 to 65535")
        top = next(limit for limit in ranges if highest <= limit)
    return Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))
