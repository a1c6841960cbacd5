"""Files of pairs, JSON lines and SynCD's JSON: their content; tests/bad_inputs has the problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, datasets, open_dataset, prompts_of
from customized_grpo.protocols import PairDataset

COLOURS = ["red", "green", "blue"]
GOOD = {"prompt": "a cat", "reference": "a.jpg"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    (inside / "masks").mkdir(parents=True)
    Image.new("RGB", (20, 12), "red").save(inside / "a.jpg")
    Image.new("L", (10, 6), 255).save(inside / "m.png")
    for colour in COLOURS:
        Image.new("RGB", (9, 9), colour).save(inside / f"{colour}.png")
    Image.new("L", (9, 9), 255).save(inside / "masks" / "green.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    return inside


def write(folder: Path, *lines: Any) -> DataConfig:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "pairs.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return DataConfig(path=str(folder / "pairs.jsonl"))


def write_json(folder: Path, content: Any) -> DataConfig:
    (folder / "data.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return DataConfig(path=str(folder / "data.json"))


def test_lines_become_pairs(folder: Path) -> None:
    full = {"prompt": " un chat \u2028 été ", "references": ["a.jpg", "red.png"], "masks": ["m.png", None], "task": [1]}
    short = {**GOOD, "mask": "m.png", "subject": "cat", "key": "mine", "image_prompt": {"x": 1}}
    dataset = open_dataset(write(folder, full, "", short))
    assert isinstance(dataset, PairDataset) and len(dataset) == 2
    first, second = dataset[0], dataset[1]
    assert (first.key, first.prompt, first.subject) == ("pairs.jsonl:1", "un chat \u2028 été", None)
    assert [image.size for image in first.references] == [(20, 12), (9, 9)]
    assert first.masks[0] is not None and first.masks[0].size == (20, 12) and first.masks[1] is None
    assert (second.key, second.prompt, second.subject) == ("mine", "a cat", "cat")
    assert first.columns == {"task": [1], "image_prompt": None}, "every pair has the columns of all"
    assert second.columns == {"task": None, "image_prompt": {"x": 1}}
    with pytest.raises(IndexError):
        dataset[2]


def test_a_folder_with_metadata_is_read_as_datasets_read_it(folder: Path) -> None:
    lines = [{"file_name": "a.jpg", "text": "a cat"}, {"file_name": "green.png", "text": "a dog", "style": "plain"}]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    pairs = open_dataset(DataConfig(path=str(folder)))
    assert [pairs[i].prompt for i in range(2)] == ["a cat", "a dog"] == prompts_of(pairs)
    assert pairs[0].references[0].size == (20, 12) and pairs[1].columns == {"style": "plain"}
    assert pairs[1].masks[0] is not None
    same = datasets.from_imagefolder(folder, size=1)
    assert len(same) == 1 and prompts_of(same) == ["a cat"]


def test_a_folder_of_images_with_captions_beside_them(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "green.png").rename(folder / "more" / "green.png")
    for name in ("a", "m", "red", "blue", "more/green"):
        (folder / f"{name}.txt").write_text(f"a {name}\nin the snow\n", encoding="utf-8")
    pairs = open_dataset(DataConfig(path=str(folder)))
    keys = [pair.key for pair in map(pairs.__getitem__, range(5))]
    assert keys == ["a.jpg", "blue.png", "m.png", "more/green.png", "red.png"]
    assert pairs[3].prompt == "a more/green in the snow"
    (folder / "red.txt").unlink()
    (folder / "blue.txt").write_bytes(b"\xff")
    (folder / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        open_dataset(DataConfig(path=str(folder)))
    expected = ("a.txt: is ' \\n'", "blue.txt: not UTF-8", "red.txt: is missing")
    assert all(words in problem for problem, words in zip(raised.value.problems, expected, strict=True))


def test_root_is_where_paths_start(folder: Path) -> None:
    config = write(folder, {"prompt": "a", "reference": "outside.png"})
    assert len(open_dataset(config.model_copy(update={"root": folder.parent}))) == 1


def test_a_size_takes_pairs_of_a_file_evenly_spread(folder: Path) -> None:
    config = write(folder, *({**GOOD, "prompt": str(i)} for i in range(10)))
    few = open_dataset(config.model_copy(update={"size": 4}))
    assert [few[i].prompt for i in range(len(few))] == ["0", "2", "5", "7"]
    assert len(open_dataset(config.model_copy(update={"size": 40}))) == 10


def test_a_set_of_images_gives_a_pair_for_each_prompt(folder: Path) -> None:
    record = {
        "filenames": [f"{colour}.png" for colour in COLOURS],
        "prompts": [f"a {colour} toy" for colour in COLOURS],
        "category": "toy",
        "dino_scores": [[1.0]],
    }
    dataset = open_dataset(write_json(folder, [record]))
    shown = {"a red toy": (0, 128, 0), "a green toy": (0, 0, 255), "a blue toy": (255, 0, 0)}
    pairs = [dataset[i] for i in range(len(dataset))]
    assert {pair.prompt for pair in pairs} == set(shown) and len({pair.key for pair in pairs}) == 3
    for pair in pairs:
        assert np.asarray(pair.references[0])[0, 0].tolist() == list(shown[pair.prompt])
        assert (pair.subject, pair.columns) == ("toy", {"dino_scores": [[1.0]]})
        assert (pair.masks[0] is not None) == (pair.prompt == "a red toy"), "whose reference is green"


@pytest.mark.parametrize(
    ("prompt", "references", "wrapped"),
    [
        ("prompt", "references", False),
        ("caption", "reference_images", True),
        ("prompt", "images", False),
        ("prompt", "image_paths", True),
        ("caption", "image_path", False),
    ],
)
def test_spellings_of_one_pair(folder: Path, prompt: str, references: str, wrapped: bool) -> None:
    value: Any = "green.png" if references in ("image_path", "reference") else ["green.png", "red.png"]
    record = {prompt: "a toy", references: value, "image_tgt_path": "nowhere.png", "subject": None}
    pair = open_dataset(write_json(folder, {"version": 1, "data": [record]} if wrapped else [record]))[0]
    assert (pair.key, pair.prompt, pair.columns) == ("data.json[0]", "a toy", {"image_tgt_path": "nowhere.png"})
    assert [mask is not None for mask in pair.masks] == ([True] if isinstance(value, str) else [True, False])
