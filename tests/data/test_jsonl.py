"""JSON lines: what is read, and that every problem of a file is told of at once with its line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, open_dataset
from customized_grpo.data.jsonl import open_jsonl
from customized_grpo.protocols import PairDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    room = tmp_path / "room"
    (room / "sub").mkdir(parents=True)
    Image.new("RGB", (20, 12), "red").save(room / "a.jpg")
    Image.new("RGB", (9, 9), "blue").save(room / "sub" / "b.png")
    Image.new("L", (10, 6), 255).save(room / "m.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    return room


def write(folder: Path, *lines: Any, ending: str = "\n", start: bytes = b"") -> Path:
    path = folder / "pairs.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes(start + ending.join([*texts, ""]).encode())
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        open_jsonl(path)
    assert all("\n" not in problem for problem in caught.value.problems)
    return [problem.removeprefix(str(path.parent) + "/") for problem in caught.value.problems]


GOOD = {"prompt": "a cat", "reference": "a.jpg"}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_both_forms(folder: Path, start: bytes, ending: str) -> None:
    path = write(
        folder,
        {
            "prompt": " un chat \u2028 été ",
            "references": ["a.jpg", "sub/b.png"],
            "masks": ["m.png", None],
        },
        "",
        {**GOOD, "mask": "m.png", "subject": "cat", "key": "mine"},
        ending=ending,
        start=start,
    )
    dataset = open_dataset(DataConfig(path=str(path)))
    assert isinstance(dataset, PairDataset)
    first, second = dataset[0], dataset[1]
    assert len(dataset) == 2
    assert (first.key, first.prompt, first.subject) == ("pairs.jsonl:1", "un chat \u2028 été", None)
    assert [image.size for image in first.references] == [(20, 12), (9, 9)]
    assert first.masks[0] is not None
    assert first.masks[0].size == (20, 12)
    assert first.masks[1] is None
    assert (second.key, second.prompt, second.subject) == ("mine", "a cat", "cat")
    with pytest.raises(IndexError):
        dataset[2]


def test_all_problems_are_told_of_at_once(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"x")
    path = write(
        folder,
        GOOD,
        "{not json",
        "[1]",
        {"promt": "a cat", "reference": "a.jpg"},
        {"prompt": "  ", "references": []},
        {**GOOD, "references": ["a.jpg"]},
        {"prompt": "a", "references": ["a.jpg", "sub/b.png"], "masks": ["m.png"]},
        {"prompt": 5, "reference": 6},
        {"prompt": "a", "reference": "missing.png"},
        {"prompt": "a", "reference": "broken.png"},
        '{"prompt": "a", "prompt": "b", "reference": "a.jpg"}',
        {"prompt": "\ud800", "reference": "a.jpg"},
    )
    found = problems(path)
    for line, text in [
        (2, "not valid JSON"),
        (3, "not a JSON object"),
        (4, "unknown key 'promt'; did you mean 'prompt'?"),
        (4, "no 'prompt'"),
        (5, "'prompt' is '  '"),
        (5, "'references' is an empty list"),
        (6, "both given"),
        (7, "'masks' has 1 for 2"),
        (8, "'prompt' is 5"),
        (8, "'reference' holds 6"),
        (9, "missing.png: no such file"),
        (10, "broken.png: not an image"),
        (11, "'prompt' is given twice"),
        (12, "surrogate"),
    ]:
        assert any(f"pairs.jsonl:{line}: " in problem and text in problem for problem in found), (
            line,
            text,
        )
    assert len(found) == 14


@pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "/etc/hostname", "a\0.jpg"])
def test_paths_do_not_leave_the_folder(folder: Path, name: str) -> None:
    (found,) = problems(write(folder, {"prompt": "a", "reference": name}))
    assert found.startswith("pairs.jsonl:1: 'reference'")
    assert "leaves the folder" in found or "holds" in found


def test_other_keys_are_columns_of_all_pairs(folder: Path) -> None:
    path = write(folder, {**GOOD, "target": 0.5, "task": ["a", None]}, {**GOOD, "image_prompt": {"x": 1}})
    first, second = open_dataset(DataConfig(path=str(path)))[0], open_dataset(DataConfig(path=str(path)))[1]
    assert first.columns == {"target": 0.5, "task": ["a", None], "image_prompt": None}
    assert second.columns == {"target": None, "task": None, "image_prompt": {"x": 1}}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("refrences", "references"), ("Prompt", "prompt"), ("subjects", "subject"), ("maks", "masks"), ("keys", "key")],
)
def test_a_key_that_is_nearly_a_known_one_is_no_column(folder: Path, name: str, meant: str) -> None:
    (found,) = problems(write(folder, {**GOOD, name: "a.jpg"}))
    assert found == (
        f"pairs.jsonl:1: unknown key {name!r}; did you mean {meant!r}? If not, give the column another name"
    )


def test_root_is_where_paths_start(folder: Path) -> None:
    path = write(folder, {"prompt": "a", "reference": "outside.png"})
    assert len(open_dataset(DataConfig(path=str(path), root=folder.parent))) == 1
    with pytest.raises(DataError, match=r"data\.root: no folder"):
        open_dataset(DataConfig(path=str(path), root=folder / "nowhere"))


def test_keys_are_unique(folder: Path) -> None:
    (found,) = problems(write(folder, {**GOOD, "key": "k"}, {**GOOD, "key": "k"}))
    assert found.startswith("pairs.jsonl:2: the key 'k' is that of ")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(folder: Path, content: bytes) -> None:
    path = folder / "pairs.jsonl"
    path.write_bytes(content)
    assert problems(path) == ["pairs.jsonl: holds no pairs; add one"]


def test_other_encodings_and_deep_nests(folder: Path) -> None:
    path = folder / "pairs.jsonl"
    path.write_bytes(b'{"prompt": "\xe9"}\n' + b"[" * 200_000 + b"\n")
    found = problems(path)
    assert found[0].startswith("pairs.jsonl:1: not UTF-8")
    assert found[1].startswith("pairs.jsonl:2: not valid JSON")


def test_a_problem_is_a_line() -> None:
    assert str(DataError(f"p{i}" for i in range(500))).splitlines() == [f"p{i}" for i in range(500)]
    assert str(DataError(["a\nb"])) == "a\\nb"


@pytest.mark.parametrize(
    ("name", "text"),
    [("nowhere", "no file or folder"), ("pairs.csv", "no known kind"), (".", "has no prompts")],
)
def test_paths_of_no_known_kind(folder: Path, name: str, text: str) -> None:
    (folder / "pairs.csv").write_text("x")
    with pytest.raises(DataError, match=text):
        open_dataset(DataConfig(path=str(folder / name)))
