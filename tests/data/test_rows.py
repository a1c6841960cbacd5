"""Rows of other datasets as pairs: forms of images, columns, keys, and problems with row and column."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.data import DataError, datasets
from customized_grpo.protocols import Pair, PairDataset
from customized_grpo.utils.pixels import encoded

Rows = list[dict[str, Any]]


def photo(colour: str = "red", size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def pixel(pair: Pair, index: int = 0) -> list[int]:
    return np.asarray(pair.references[index])[0, 0].tolist()  # type: ignore[no-any-return]


def problems(rows: Any, **columns: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        datasets.from_dataset(rows, **columns)
    assert all("\n" not in problem for problem in caught.value.problems)
    return list(caught.value.problems)


@pytest.fixture
def rows() -> Rows:
    return [
        {"prompt": " a dog in the snow ", "references": photo("red"), "target": 0.5, "note": "first"},
        {"prompt": "a dog in the jungle", "references": [photo("lime"), photo("blue")], "target": 0.25},
    ]


class Torch(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, rows: Rows, broken: int | None = None) -> None:
        self.rows, self.broken = rows, broken
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        if index == self.broken:
            raise RuntimeError("bad\nsector")
        return self.rows[index]


@pytest.mark.parametrize("made", [list, tuple, Torch])
def test_rows_become_pairs(rows: Rows, made: Callable[[Rows], Any]) -> None:
    pairs = datasets.from_dataset(made(rows))
    assert isinstance(pairs, PairDataset) and len(pairs) == 2 and pairs.config is None  # type: ignore[attr-defined]
    first, second = pairs[0], pairs[-1]
    assert (first.key, first.prompt, first.subject, first.masks) == ("row 0", "a dog in the snow", None, (None,))
    assert (pixel(first), pixel(second), pixel(second, 1)) == ([255, 0, 0], [0, 255, 0], [0, 0, 255])
    assert first.columns == {"target": 0.5, "note": "first"}
    assert second.columns == {"target": 0.25, "note": None}
    with pytest.raises(IndexError):
        pairs[2]


def test_every_form_of_an_image(tmp_path: Path) -> None:
    photo("red").save(tmp_path / "a.png")
    forms = [
        str(tmp_path / "a.png"), tmp_path / "a.png", encoded(photo("red")), photo("red"),
        {"bytes": encoded(photo("red")), "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")},
        photo("red").convert("P"), Image.new("RGBA", (12, 8), "red"),
    ]  # fmt: skip
    pairs = datasets.from_dataset([{"prompt": "a", "references": v} for form in forms for v in (form, [form], (form,))])
    for pair in (pairs[i] for i in range(len(pairs))):
        assert (pair.references[0].mode, pair.references[0].size, pixel(pair)) == ("RGB", (12, 8), [255, 0, 0])


def test_images_that_pillow_has_read_stay_as_they_are() -> None:
    large = Image.new("L", (4096, 16), 7)
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    turned = photo("red", (64, 8))
    turned.putpixel((0, 0), (0, 0, 255))
    lazy = Image.open(io.BytesIO(encoded(turned, "JPEG", exif=upside_down, quality=100, subsampling=0)))
    pairs = datasets.from_dataset([{"prompt": "a", "references": [large, lazy]}])
    assert [image.size for image in pairs[0].references] == [(2048, 8), (64, 8)]
    assert large.size == (4096, 16) and large.mode == "L" and lazy.size == (64, 8)
    shown = np.asarray(pairs[0].references[1])
    assert shown[-1, -1, 2] > 100 > shown[0, 0, 2]


def test_named_columns_masks_subjects_and_keys() -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[2:6, 3:9] = 1
    row = {
        "text": "a dog", "photos": [photo(), photo()], "cut": [Image.fromarray(mask), None], "word": " dog ", "id": 7,
        "prompt": "another text",
    }  # fmt: skip
    rows = [row, {**row, "id": 8, "cut": None, "word": None}]
    pairs = datasets.from_dataset(rows, "text", "photos", masks="cut", subject="word", key="id")
    pair = pairs[0]
    assert (pair.key, pair.prompt, pair.subject, pair.columns) == ("7", "a dog", "dog", {"prompt": "another text"})
    assert pair.masks[0] is not None and pair.masks[0].mode == "L" and pair.masks[1] is None
    assert np.array_equal(np.asarray(pair.masks[0]) > 127, mask > 0)
    assert (pairs[1].key, pairs[1].masks, pairs[1].subject) == ("8", (None, None), None)


def test_all_prompts_and_keys_of_a_list_are_checked_at_once_images_when_they_are_read(rows: Rows) -> None:
    many = [{**rows[0], "id": index} for index in range(9)]
    many[6] = {**many[6], "prompt": " "}
    many[7] = {**many[7], "prompt": 5}
    many[8] = {**many[8], "id": 3}
    assert problems(many, key="id") == [
        "row 6, column 'prompt' is ' '; give a text that is not empty",
        "row 7, column 'prompt' is 5; give a text that is not empty",
        "row 8, column 'id' is '3', as in row 3; give each row its own",
    ]
    late = Torch([rows[0]] * 6 + [{**rows[0], "references": b"no image"}])
    pairs = datasets.from_dataset(late)
    assert set(late.read) == {0, 1, 2, 3}
    with pytest.raises(DataError, match=r"^row 6, column 'references': not an image of a known format"):
        pairs[6]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"references": None}, "column 'references' has no value; give one or remove the row"),
        ({"references": [None]}, "column 'references' holds a NoneType; give a Pillow image, a path, or the bytes"),
        ({"references": "nowhere.png"}, "column 'references': nowhere.png: no such file"),
        ({"prompt": "\ud800"}, "column 'prompt' holds half a surrogate pair"),
        ({"mask": [photo(), photo()]}, "column 'mask' has 2 for 1 references; give one each, or None"),
        ({"mask": photo("black")}, "column 'mask': the mask marks no pixel"),
        ({"word": 3}, "column 'word' is 3; give a text"),
    ],
)
def test_a_row_that_cannot_be_used(change: dict[str, Any], text: str) -> None:
    row = {"prompt": "a dog", "references": photo(), "mask": None, "word": "dog"}
    (found,) = problems([row, {**row, **change}], masks="mask", subject="word")
    assert found.startswith("row 1, ") and text in found


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda rows: [], "from_dataset: a list without rows by index; give a list, one split"),
        (lambda rows: (row for row in rows), "a generator without rows by index"),
        (lambda rows: [("a dog", photo())], "row 0 is a tuple; give rows that are dicts"),
        (lambda rows: Torch(rows, broken=1), "row 1 cannot be read (RuntimeError: bad sector, at "),
    ],
)
def test_what_has_no_rows(rows: Rows, made: Callable[[Rows], Any], text: str) -> None:
    (found,) = problems(made(rows))
    assert text in found


def test_a_column_that_is_not_there(rows: Rows) -> None:
    first, second = problems(rows, prompt="promt", references="photos")
    assert first == "from_dataset: prompt is 'promt', which is not a column; did you mean 'prompt'?"
    assert second.endswith("which is not a column; name one of 'prompt', 'references', 'target', 'note'")


def test_a_hugging_face_dataset(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    files = [str(tmp_path / f"{colour}.png") for colour in ("red", "blue")]
    for colour, file in zip(("red", "blue"), files, strict=True):
        photo(colour).save(file)
    table = {"caption": [f"a dog {i}" for i in range(6)], "photos": [files] * 6, "score": [i / 2 for i in range(6)]}
    dataset = library.Dataset.from_dict(table).cast_column("photos", library.Sequence(library.Image()))
    pairs = datasets.from_dataset(dataset, prompt="caption", references="photos")
    assert len(pairs) == 6 and (pairs[5].prompt, pairs[5].columns["score"]) == ("a dog 5", 2.5)
    assert [pixel(pairs[1], i) for i in range(2)] == [[255, 0, 0], [0, 0, 255]]
    # Images that are not decoded, in another order.
    raw = dataset.cast_column("photos", library.Sequence(library.Image(decode=False))).shuffle(seed=0)
    pair = datasets.from_dataset(raw, prompt="caption", references="photos", key="caption")[2]
    assert [pixel(pair, i) for i in range(2)] == [[255, 0, 0], [0, 0, 255]] and pair.key == pair.prompt
    assert "a DatasetDict without rows by index" in problems(library.DatasetDict(train=dataset))[0]
    assert "without rows by index" in problems(dataset.to_iterable_dataset(), prompt="caption")[0]
