"""Images and masks from untrusted files: decoded safely, turned upright by EXIF, converted to one mode."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from customized_grpo.data.errors import DataError

#: The only formats that are tried. Others that Pillow reads start programs (EPS) or are rarely tested.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Endings of files that are images in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
#: Images with more pixels are refused before anything is decoded.
MAX_PIXELS = 2**26
#: Larger images are reduced to this longest side when they are loaded, because no model here needs more.
LONGEST_SIDE = 2048

#: A file, its content, or an image that Pillow has opened.
Source = Path | bytes | Image.Image


def load(source: Source, where: str | None = None) -> Image.Image:
    """Load an image as RGB, upright by its EXIF, with sides of at most `LONGEST_SIDE`.

    Transparency becomes white, 16-bit grey is scaled to 8 bits, and of an animation the first frame is taken.
    DataError, one line that begins with `where` or the path, if it is missing, damaged, too large or of another format.
    """
    with _opened(source, where) as image:
        if image is not source:  # the caller's own image stays unchanged
            image.draft(None, (LONGEST_SIDE, LONGEST_SIDE))  # decodes huge JPEGs at 1/2, 1/4 or 1/8 of their size
        loaded = _rgb(ImageOps.exif_transpose(image))
        loaded.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        return loaded


def load_mask(source: Source, size: tuple[int, int] | None = None, where: str | None = None) -> Image.Image:
    """Load a mask: mode L with values 0 and 255 only, of the given size (width, height) or its own.

    Its alpha counts if it varies, else its brightness. Raises DataError as `load` does, and if no pixel is marked.
    """
    with _opened(source, where) as image:
        mask = _grey(ImageOps.exif_transpose(image))
        own = mask.size
        if size is not None:
            mask = mask.resize(size, Image.Resampling.BILINEAR)
        binary, place = (
            mask.point([0] * 128 + [255] * 128),
            where or (str(source) if isinstance(source, Path) else "the image"),
        )
        if binary.getbbox() is None:
            raise DataError([f"{place}: the mask marks no pixel; make the subject white on black"])
        _check_shape(own, mask.size, place)
        return binary


def _check_shape(mask: tuple[int, int], photo: tuple[int, int], place: str) -> None:
    """Raise DataError if a mask's aspect ratio is not its photo's, up to rounding."""
    ratio = (mask[0] * photo[1]) / (mask[1] * photo[0])
    if abs(math.log(ratio)) > max(0.02, 1.5 / min(*mask, *photo)):
        raise DataError(
            [
                f"{place}: the mask is {mask[0]} x {mask[1]} pixels, its photo {photo[0]} x {photo[1]}, another shape; "
                "make it from the photo as it is shown, turned as its EXIF says"
            ]
        )


def check(path: Path, *, quick: bool = False) -> None:
    """Raise DataError if `load` would. JPEGs are decoded at an eighth of their size, others in full.

    With `quick`, PNGs are checked by their checksums and all other formats but JPEG by their headers.
    """
    with _opened(path) as image:
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (1, 1))
        elif quick:
            image.verify()
            return
        _rgb(ImageOps.exif_transpose(image))


def check_suffix(path: Path, option: str) -> None:
    """Raise DataError if `path`, the value of a command's `option`, does not end as an image file does."""
    if Image.registered_extensions().get(path.suffix.lower()) not in FORMATS:
        raise DataError([f"{option} {path}: not the name of an image; give one that ends in .png"])


def problems(paths: Iterable[Path], checker: Callable[[Path], object]) -> dict[Path, str]:
    """Check several files at a time by `check` or `load_mask`; return the problems by path."""

    def find(path: Path) -> str | None:
        try:
            checker(path)
        except DataError as error:
            return str(error)
        return None

    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(thread_name_prefix="images") as pool:
        return {path: text for path, text in zip(distinct, pool.map(find, distinct), strict=True) if text is not None}


@contextmanager
def _opened(source: Source, where: str | None = None) -> Iterator[Image.Image]:
    """Open the source and check its size. Every error inside becomes a DataError of one line."""
    place = where or (str(source) if isinstance(source, Path) else "the image")
    try:
        if isinstance(source, Path):
            size = source.stat().st_size
            if not source.is_file():  # a pipe would never end
                raise DataError([f"{place}: not a file; give the path of an image"])
            if not size:
                raise DataError([f"{place}: the file is empty; replace it"])
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with nullcontext(file) if isinstance(file, Image.Image) else Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
            return
    except DataError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        problem = "no such file; correct the path or restore the file"
    except PermissionError:
        problem = "may not be read; grant read permission"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = f"its size is above the bound of {MAX_PIXELS // 10**6} million pixels; reduce it"
    except UnidentifiedImageError:
        problem = f"not an image of a known format; convert it to one of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, struct.error, ...
        problem = f"does not decode ({str(error) or type(error).__name__}); replace the file"
    raise DataError([f"{place}: {problem}"])


def _rgb(image: Image.Image) -> Image.Image:
    if _is_deep(image):
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    deep = _is_deep(image)
    grey = _scaled(image) if deep else image.convert("RGB").convert("L")
    if not deep and image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        least, most = alpha.getextrema()
        grey = alpha if least != most else grey
    return grey.point([0] + [255] * 255) if grey.getextrema()[1] == 1 else grey


def _is_deep(image: Image.Image) -> bool:
    """Return True for more than 8 bits of grey, which Pillow's own conversion to RGB would clip, not scale."""
    return image.mode == "F" or image.mode.startswith("I")


def _scaled(image: Image.Image) -> Image.Image:
    """Scale 16 bits of grey to 8, and 32 bits by the smallest range that contains them: 1, 255 or 65535."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it contains values that are not finite")
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its values lie outside 0 to 65535")
    ranges = (65535,) if image.mode.startswith("I;16") else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    top = next(limit for limit in ranges if values.max() <= limit)
    return Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))
