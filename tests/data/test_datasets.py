"""Datasets from Python: each remembers the config that opens it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, datasets, open_dataset

LINE = {"prompt": "a dog", "references": ["a.png"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    lines = [json.dumps({**LINE, "target": number}) for number in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "pairs.json").write_text(f"[{','.join(lines)}]", encoding="utf-8")
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "dog" / "00.jpg")
    prompts = "prompt_list = [\n'a {0} {1} in the jungle'.format(unique_token, class_token)\n]\n"
    (tmp_path / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\ndog,dog\n\nPrompts\n\n"
        f"Object Prompts\n{prompts}\nLive Subject Prompts\n{prompts}",
        encoding="utf-8",
    )
    return tmp_path


OPENED: list[tuple[Callable[[Path], Any], dict[str, Any], int]] = [
    (lambda folder: datasets.from_jsonl(folder / "pairs.jsonl"), {"path": "{}/pairs.jsonl"}, 4),
    (
        lambda folder: datasets.from_jsonl(str(folder / "pairs.jsonl"), root=folder, size=2),
        {"path": "{}/pairs.jsonl", "root": "{}", "size": 2},
        2,
    ),
    (lambda folder: datasets.from_syncd(folder / "pairs.json"), {"path": "{}/pairs.json"}, 4),
    (lambda folder: datasets.from_dreambench(folder), {"path": "{}"}, 1),
    (lambda folder: datasets.world(), {"path": "world"}, 4096),
    (
        lambda folder: datasets.world("held-out", size=5, seed=3, recoloured=True),
        {"path": "world-recoloured", "split": "held-out", "size": 5, "seed": 3},
        5,
    ),
]


@pytest.mark.parametrize(("opened", "config", "size"), OPENED)
def test_a_dataset_remembers_its_config(
    opened: Callable[[Path], Any], config: dict[str, Any], size: int, folder: Path
) -> None:
    pairs = opened(folder)
    filled = {key: value.format(folder) if isinstance(value, str) else value for key, value in config.items()}
    assert pairs.config == DataConfig(**filled) and len(pairs) == size
    again = open_dataset(pairs.config)
    assert [again[i].key for i in (0, size - 1)] == [pairs[i].key for i in (0, size - 1)]
    assert dict(again[size - 1].columns) == dict(pairs[size - 1].columns)


@pytest.mark.parametrize(
    ("opened", "text"),
    [
        (lambda folder: datasets.from_jsonl(folder / "pairs.json"), "does not end in .jsonl or .ndjson; give such"),
        (lambda folder: datasets.from_dreambench(folder / "none"), "no such folder; give the folder that holds"),
        (lambda folder: datasets.world("test"), "split: 'test'; input should be 'train' or 'held-out'"),
    ],
)
def test_problems_are_one_line(opened: Callable[[Path], Any], text: str, folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(folder)
    assert text in str(caught.value) and "\n" not in str(caught.value)
