"""Images and masks are decoded rightly, or refused in one line; tests/bad_inputs has those of other kinds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data import image_files
from customized_grpo.data.errors import DataError

RED = (220, 30, 40)


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


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("a.png", np.array([[0, 257, 32896, 65535]], dtype=np.uint16), [0, 1, 128, 255]),
        ("a.tif", np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
    ],
)
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, name: str, values: np.ndarray, shown: list[int]) -> None:
    Image.fromarray(values).save(tmp_path / name)
    assert np.asarray(image_files.load(tmp_path / name))[0, :, 1].tolist() == shown


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_quick_check_refuses_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.effect_noise((64, 48), 90).save(path)
    image_files.check(path, quick=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match=f"^{path}: "):
        image_files.check(path, quick=True)


@pytest.mark.parametrize("kind", ["0 and 1", "1 bit", "alpha", "palette", "16 bit", "opaque alpha"])
def test_masks_are_black_and_white_and_of_the_requested_size(tmp_path: Path, kind: str) -> None:
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
    mask = image_files.load_mask(tmp_path / "a.png", (24, 24))
    assert mask.mode == "L" and np.array_equal(np.asarray(mask), 255 * on.repeat(3, 0).repeat(3, 1))


def test_a_mask_of_another_shape_is_refused_and_another_size_is_not(tmp_path: Path) -> None:
    Image.new("L", (400, 300), 255).save(tmp_path / "mask.png")
    for size in ((400, 300), (1200, 900), (41, 31), (133, 101)):
        assert image_files.load_mask(tmp_path / "mask.png", size).size == size
    with pytest.raises(
        DataError, match=r"mask\.png: the mask is 400 x 300 pixels, its photo 300 x 400, another shape; make"
    ):
        image_files.load_mask(tmp_path / "mask.png", (300, 400))
