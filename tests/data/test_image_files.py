"""Images and masks are decoded rightly, or refused in one line; tests/bad_inputs has those of other kinds."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data import image_files
from customized_grpo.data.errors import DataError

RED = (220, 30, 40)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng([width, height, channels])
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def refusal(action: Callable[[], object], path: Path) -> str:
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste(RED, (0, 0, 12, 12))  # top left, which tells all eight apart with the sides unequal
    upright.paste((20, 60, 200), (28, 0, 40, 12))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(Image.Transpose(turn)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(image_files.load(tmp_path / "a.png")), np.asarray(upright))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    grey = np.asarray(image_files.load(tmp_path / f"a.{suffix}"))[..., 1]
    assert grey.tolist() == [[0, 1, 128, 255]]


def test_float_tiffs(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(path)
    assert np.asarray(image_files.load(path))[0, :, 0].tolist() == [0, 128, 255]


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 48)).save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_truncated_files_are_refused_by_load_and_by_check(tmp_path: Path, suffix: str) -> None:
    path, whole = tmp_path / f"a.{suffix}", encoded(suffix)
    path.write_bytes(whole)
    image_files.check(path)
    image_files.check(path, quick=True)
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    refusal(lambda: image_files.load(path), path)
    refusal(lambda: image_files.check(path), path)
    if suffix != "webp":
        refusal(lambda: image_files.check(path, quick=True), path)


def test_masks_are_black_and_white_and_of_the_size_requested(tmp_path: Path) -> None:
    drawn = np.zeros((20, 30), dtype=np.uint8)
    drawn[5:15, 10:20] = 255
    Image.fromarray(drawn).save(tmp_path / "a.png")
    mask = image_files.load_mask(tmp_path / "a.png", (60, 40))
    values = np.asarray(mask)
    assert (mask.mode, mask.size) == ("L", (60, 40))
    assert set(np.unique(values)) == {0, 255}
    assert values[20, 30] == 255
    assert values[2, 2] == 0


@pytest.mark.parametrize("kind", ["0 and 1", "1 bit", "alpha", "palette", "16 bit", "opaque alpha"])
def test_masks_of_other_kinds(tmp_path: Path, kind: str) -> None:
    on = np.zeros((8, 8), dtype=bool)
    on[:, 4:] = True
    alpha = Image.fromarray(on.astype(np.uint8) * 255)
    image = {
        "0 and 1": lambda: Image.fromarray(on.astype(np.uint8)),
        "1 bit": lambda: alpha.convert("1"),
        "alpha": lambda: Image.merge("RGBA", [*Image.new("RGB", (8, 8), "black").split(), alpha]),
        "palette": lambda: alpha.convert("P"),
        "16 bit": lambda: Image.fromarray(on.astype(np.uint16) * 65535),
        "opaque alpha": lambda: alpha.convert("RGBA"),
    }[kind]()
    image.save(tmp_path / "a.png")
    image_files.load_mask(tmp_path / "a.png")
    mask = image_files.load_mask(tmp_path / "a.png", (8, 8))
    assert np.array_equal(np.asarray(mask) == 255, on)


def test_many_are_checked_at_once(tmp_path: Path) -> None:
    paths = []
    for i in range(12):
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(b"" if i % 4 == 0 else encoded("jpg"))
    assert set(image_files.problems(paths, image_files.check)) == {paths[0], paths[4], paths[8]}
