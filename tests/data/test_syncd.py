"""SynCD-style files: sets of images with a prompt each, and pairs in the spellings in use."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, open_dataset

COLOURS = ["red", "green", "blue"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "masks").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "masks" / "green.jpg")
    return tmp_path


def write(folder: Path, content: Any) -> DataConfig:
    path = folder / "metadata.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DataConfig(path=str(path))


def test_a_set_of_images_gives_a_pair_for_each_prompt(folder: Path) -> None:
    record = {
        "filenames": [f"{colour}.png" for colour in COLOURS],
        "prompts": [f"a {colour} toy" for colour in COLOURS],
        "category": "toy",
        "dino_scores": [[1.0]],
    }
    dataset = open_dataset(write(folder, [record]))
    assert len(dataset) == 3
    shown = {"a red toy": (0, 128, 0), "a green toy": (0, 0, 255), "a blue toy": (255, 0, 0)}
    for i in range(3):
        pair = dataset[i]
        assert np.asarray(pair.references[0])[0, 0].tolist() == list(shown[pair.prompt])
        assert pair.subject == "toy"
        assert pair.columns == {"dino_scores": [[1.0]]}
        assert (pair.masks[0] is not None) == (pair.prompt == "a red toy")  # whose reference is green
    assert len({dataset[i].key for i in range(3)}) == 3


@pytest.mark.parametrize("prompt", ["prompt", "caption"])
@pytest.mark.parametrize(
    "references",
    ["references", "reference_images", "images", "image_paths", "image_path", "reference"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_spellings_of_one_pair(folder: Path, prompt: str, references: str, wrapped: bool) -> None:
    value: Any = "red.png" if references in ("image_path", "reference") else ["red.png", "green.png"]
    record = {prompt: "a toy", references: value, "image_tgt_path": "nowhere.png"}
    dataset = open_dataset(write(folder, {"version": 1, "data": [record]} if wrapped else [record]))
    pair = dataset[0]
    assert pair.prompt == "a toy" and pair.columns == {"image_tgt_path": "nowhere.png"}
    assert len(pair.references) == len(pair.masks) == (1 if isinstance(value, str) else 2)


def test_problems_name_the_record(folder: Path) -> None:
    config = write(
        folder,
        [
            {"prompt": "a", "references": ["red.png"]},
            3,
            {"filenames": ["red.png"], "prompts": ["a"]},
            {"filenames": ["red.png", "blue.png"], "prompts": ["a"]},
            {"filenames": ["red.png", "none.png"], "prompts": ["a", "b"]},
            {"prompt": "a", "caption": "b", "images": ["../x.png"]},
        ],
    )
    with pytest.raises(DataError) as caught:
        open_dataset(config)
    found = [problem.split("metadata.json", 1)[1] for problem in caught.value.problems]
    for start, text in [
        ("[1]", "not an object"),
        ("[2]", "one image alone"),
        ("[3]", "1 prompts for 2"),
        ("[4].0", "no such file"),
        ("[5]", "both given"),
        ("[5]", "leaves the folder"),
    ]:
        assert any(problem.startswith(start) and text in problem for problem in found), (
            start,
            text,
            found,
        )
    assert len(found) == 6


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", ":1: not valid JSON"),
        ("[]", "holds no pairs"),
        ('{"a": 1}', "neither a list"),
        ('{"a": [], "b": []}', "neither a list"),
        ('"x"', "neither a list"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_files_of_another_form(folder: Path, content: str, text: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(write(folder, content))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
