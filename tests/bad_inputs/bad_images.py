"""Images and masks: damaged, hostile, of odd kinds."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_cases import NO_MODEL, Case, Command, pairs, photo, scoring, training
from PIL import Image, PngImagePlugin

from customized_grpo.data import image_files

RED, BLUE = (220, 30, 40), (20, 60, 200)
Content = bytes | Callable[[Path], None]


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or noise(64, 48)).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def halves(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image.convert(mode)


def png(*chunks: tuple[bytes, bytes], wrong: bool = False) -> bytes:
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        checksum = zlib.crc32(kind + data) ^ wrong
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return content


def header(width: int, height: int, depth: int = 8, colour: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


ROWS = (b"IDAT", zlib.compress(bytes(1000)))
END = (b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG with a text that unpacks to 80 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 80_000_000, zip=True)
    return encoded("PNG", Image.new("L", (1, 1)), pnginfo=info)


def frame_header(width: int, height: int) -> bytes:
    """A JPEG that promises that size."""
    content = bytearray(encoded("JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def float_tiff(*values: float) -> bytes:
    return encoded("TIFF", Image.fromarray(np.array([values], dtype=np.float32)))


def deep_tiff(*values: int) -> bytes:
    return encoded("TIFF", Image.fromarray(np.array([values], dtype=np.int32)))


def _commands(folder: Path, name: str, used: bool) -> list[Command]:
    """The three ways of an image into the program: to be scored, as a reference, in a data set.

    A command can use two images at once, but reports one that it refuses.
    """
    good = photo(folder)
    pairs(folder, {"prompt": "a cat", "reference": name})
    scored = [(name, name)] if used else [(name, good), (good, name)]
    return [
        *(scoring("--prompt", "a cat", "--image", image, "--reference", reference) for image, reference in scored),
        training("--data", "pairs.jsonl", *NO_MODEL),
    ]


def _written(name: str, content: Content, used: bool = False) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content(folder / name)
        return _commands(folder, name, used)

    return make


def refused() -> Iterator[Case]:
    def case(name: str, file: str, content: Content, message: str) -> Case:
        return Case("image", name, _written(file, content), ((file, message),))

    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        whole = encoded(kind)
        yield case(f"{kind} cut at 90%", f"cut.{suffix}", whole[: int(len(whole) * 0.9)], "does not decode")
        yield case(f"the first 4 bytes of a {kind}", f"start.{suffix}", whole[:4], ": ")
    yield case("JPEG without its first bytes", "headless.jpg", encoded("JPEG")[9:], "not an image of a known format")
    yield case("no bytes", "empty.jpg", b"", "the file is empty")
    yield case("a text", "text.jpg", b"This is no image.\n", "not an image of a known format")
    others: dict[str, bytes] = {
        "a page of HTML": b"<!doctype html><title>404</title>not found",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "a pickle": pickle.dumps({"a": 1}),
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    }
    for what, content in others.items():
        yield case(f"{what}, .jpg", "other.jpg", content, "not an image of a known format")
    flat = "above the bound of 67 million"
    for width, height in ((8193, 8193), (2**31 - 1, 1)):
        yield case(f"PNG bomb {width} x {height}", "bomb.png", png(header(width, height), ROWS, END), flat)
    yield case("JPEG bomb", "bomb.jpg", frame_header(65500, 65500), flat)
    gif = encoded("GIF")
    yield case("GIF bomb", "bomb.gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], flat)
    yield case("PNG with a text bomb", "texts.png", text_bomb(), "does not decode")
    yield case("PNG of a wrong checksum", "crc.png", png(header(4, 4), ROWS, END, wrong=True), ": ")
    yield case("PNG of no pixels", "none.png", png(header(0, 0), ROWS, END), ": ")
    yield case("PNG of broken rows", "rows.png", png(header(4, 4), (b"IDAT", b"nonsense"), END), "does not decode")
    yield case("TIFF with NaN", "nan.tif", float_tiff(0, np.nan, 1), "not finite")
    yield case("TIFF below 0", "below.tif", float_tiff(-3, 1), "outside 0 to 65535")
    yield case("TIFF of 32 bits, too high", "high.tif", deep_tiff(0, 2**20), "outside 0 to 65535")
    yield case("a folder", "folder.jpg", Path.mkdir, "not a file")
    yield case("a named pipe", "pipe.jpg", os.mkfifo, "not a file")
    yield case("a device", "zero.jpg", lambda path: path.symlink_to("/dev/zero"), "not a file")
    yield case("a dangling link", "link.jpg", lambda path: path.symlink_to("gone.jpg"), "no such file")
    yield case("a link to itself", "loop.jpg", lambda path: path.symlink_to("loop.jpg"), ": ")
    yield case("nothing there", "missing.jpg", lambda path: None, "no such file")
    for what, name in (("line breaks", "a\nb.jpg"), ("escape codes", "a\x1b[31mb.jpg"), ("300 letters", "a" * 300)):
        yield Case("image", f"a name of {what}", _written(name, lambda path: None), (("error: ",),))
    yield from _masks()


def _masks() -> Iterator[Case]:
    def case(name: str, content: Content, message: str) -> Case:
        def make(folder: Path) -> list[Command]:
            good = photo(folder)
            _written("mask.png", content)(folder)
            pairs(folder, {"prompt": "a cat", "reference": good, "mask": "mask.png"})
            return [
                scoring("--prompt", "a cat", "--image", good, "--reference", good, "--mask", "mask.png"),
                training("--data", "pairs.jsonl", *NO_MODEL),
            ]

        return Case("image", f"mask: {name}", make, (("mask.png", message),))

    yield case("all black", encoded("PNG", Image.new("L", (8, 8))), "marks no pixel")
    yield case("all transparent", encoded("PNG", Image.new("RGBA", (8, 8), (0, 0, 0, 0))), ": ")
    yield case("no bytes", b"", "the file is empty")
    yield case("not there", lambda path: None, "no such file")


def used() -> Iterator[Case]:
    """Images of odd kinds that must come in rightly: size and colours are looked at."""

    def case(name: str, file: str, content: Content, size: tuple[int, int], colours: Any = (RED, BLUE),
             near: int = 0) -> Case:  # fmt: skip
        def check(folder: Path, printed: str) -> None:
            image = image_files.load(folder / file)
            assert image.mode == "RGB" and image.size == size, image
            at = ((size[0] // 4, size[1] // 2), (size[0] * 3 // 4, size[1] // 2))
            for place, colour in zip(at, colours or (), strict=False):
                found = image.getpixel(place)
                assert np.abs(np.subtract(found, colour)).max() <= near, (place, found, colour)

        return Case("image", name, _written(file, content, used=True), (), check)

    size = (40, 24)
    for mode in ("CMYK", "YCbCr"):
        yield case(f"JPEG of {mode}", "a.jpg", encoded("JPEG", halves(mode=mode), quality=100), size, near=6)
    yield case("JPEG, progressive", "a.jpg", encoded("JPEG", halves(), quality=100, progressive=True), size, near=6)
    yield case("JPEG named .png", "a.png", encoded("JPEG", halves(), quality=100), size, near=6)
    yield case("PNG without a suffix", "image", encoded("PNG", halves()), size)
    yield case("PNG, more after its end", "a.png", encoded("PNG", halves()) + b"<?php ?>" * 99, size)
    deep = np.zeros((24, 40), dtype=np.uint16)
    deep[:, 20:] = 65535
    floats = Image.fromarray(deep.astype(np.float32) / 65535)
    for suffix, kind, grey in (("pgm", "PPM", Image.fromarray(deep)), ("tif", "TIFF", floats)):
        yield case(f"{kind} of {grey.mode}", f"a.{suffix}", encoded(kind, grey), size, ((0, 0, 0), (255, 255, 255)))
    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 0, 32896) * 4 for _ in range(4))
    wide = png(header(4, 4, 16, 2), (b"IDAT", zlib.compress(rows)), END)
    yield case("PNG of 3 x 16 bits", "a.png", wide, (4, 4), ((255, 0, 128), (255, 0, 128)))
    palette = Image.new("P", size)
    palette.putpalette([*RED, *BLUE, 0, 0, 0])
    palette.paste(1, (20, 0, 40, 24))
    yield case("palette with alpha", "a.png", encoded("PNG", palette, transparency=bytes([0, 255, 255])), size,
               ((255, 255, 255), BLUE))  # fmt: skip
    clear = halves(mode="RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 24))
    for kind, suffix, options in (("PNG", "png", {}), ("WEBP", "webp", {"lossless": True}), ("TIFF", "tif", {})):
        yield case(f"{kind} with alpha", f"a.{suffix}", encoded(kind, clear, **options), size, ((255, 255, 255), BLUE))
    yield case("grey with alpha", "a.png", encoded("PNG", clear.convert("LA")), size, ((255, 255, 255),))
    frames = [Image.new("RGB", size, colour) for colour in (BLUE, RED)]
    for kind, suffix, options in (
        ("GIF", "gif", {}), ("PNG", "png", {}), ("WEBP", "webp", {"lossless": True}), ("TIFF", "tif", {})
    ):  # fmt: skip
        content = encoded(kind, halves(), save_all=True, append_images=frames, **options)
        yield case(f"{kind} of several frames", f"a.{suffix}", content, size)
    exif = Image.Exif()
    exif[0x0112] = 65535
    yield case("EXIF of no known orientation", "a.png", encoded("PNG", halves(), exif=exif), size)
    yield case("EXIF that is damaged", "a.jpg", encoded("JPEG", halves(), quality=100, exif=b"Exif\0\0II*\0nonsense"),
               size, near=6)  # fmt: skip
    yield case("a colour profile that is none", "a.png", encoded("PNG", halves(), icc_profile=b"nonsense"), size)
    yield case("20000 x 1", "a.png", encoded("PNG", halves(20000, 1)), (2048, 1))
    for what, name in (("spaces", "my cat.png"), ("emoji", "🐈.png"), ("a bracket", "[a].png")):
        yield case(f"a name of {what}", name, encoded("PNG", halves()), size)


CASES = [*refused(), *used()]
