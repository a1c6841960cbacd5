"""`cgrpo score`: the same numbers as the rewards themselves, as a table or a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from embedded import embedded
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.config import Config, RewardConfig
from customized_grpo.config.loading import save_config
from customized_grpo.protocols import Pair
from customized_grpo.rewards import build_reward
from customized_grpo.utils.pixels import to_tensor

OWN = """
def first_half(images, pairs, value=1.0):
    scores = images.mean((1, 2, 3)) * value
    scores[scores > 0.5 * value] = float("nan")
    return scores
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: images of two sizes, a reference with its mask, a run."""
    rng = np.random.default_rng(0)
    (tmp_path / "drawn").mkdir()
    for name, size in (("a", 64), ("b", 64), ("c", 48), ("d", 64)):
        pixels = rng.integers(0, 256, (size, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "drawn" / f"{name}.png")
    (tmp_path / "drawn" / "notes.txt").write_text("no image")
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "own.py").write_text(OWN)
    save_config(embedded(Config), tmp_path / "config.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def score(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["score", "--prompt", "a cat in the snow", *arguments])


def tensor(path: Path) -> torch.Tensor:
    return to_tensor(Image.open(path).convert("RGB"))[None]


def test_a_kind_scores_as_in_a_training(folder: Path) -> None:
    arguments = ["--path", "embedded/monitor-identity", "--option", "segmented={0}", "--reference", "cat.png"]
    masks = (Image.open(folder / "mask.png"),)
    pair = Pair("a", "a cat in the snow", (Image.open(folder / "cat.png"),), masks)
    for segmented in (True, False):
        config = RewardConfig(
            kind="dino", role="identity", path="embedded/monitor-identity", options={"segmented": segmented}
        )
        expected = float(build_reward(config, "cpu")(tensor(folder / "drawn/a.png"), [pair]))
        given = [part.format(str(segmented).lower()) for part in arguments]
        done = score("--reward", "dino", *given, "--mask", "mask.png", "--image", "drawn/a.png")
        assert done.exit_code == 0, done.stderr
        assert "drawn/a.png" in done.stdout and f"{expected:.3f}" in done.stdout and "mean" not in done.stdout


def test_a_folder_is_scored_by_a_runs_rewards_to_a_csv_file(folder: Path) -> None:
    shared = ["--images", "drawn", "--reference", "cat.png", "--out", "out/scores.csv"]
    done = score("--run", ".", *shared)
    assert done.exit_code == 0, done.stderr
    assert "wrote out/scores.csv" in done.stdout
    with (folder / "out/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    config = embedded(Config)
    rewards = [*config.rewards, *config.evaluation.monitors]
    assert list(rows[0]) == ["image", *(reward.name for reward in rewards)]
    assert [row["image"] for row in rows] == [f"drawn/{name}.png" for name in "abcd"]
    pair = Pair("a", "a cat in the snow", (Image.open(folder / "cat.png"),), (None,))
    for reward in rewards:
        scorer = build_reward(reward, "cpu")
        for row in rows:
            expected = float(scorer(tensor(folder / row["image"]), [pair]))
            assert float(row[scorer.name]) == pytest.approx(expected, abs=2e-3)
    done = score("--config", "config.yaml", "--reward", "prompt", "--reward", "copy-paste", *shared)
    assert done.exit_code == 2 and "scores.csv: exists; give another name, or --overwrite" in done.stderr
    done = score("--config", "config.yaml", "--reward", "prompt", "--reward", "copy-paste", *shared, "--overwrite")
    with (folder / "out/scores.csv").open(newline="") as file:
        chosen = list(csv.DictReader(file))
    assert list(chosen[0]) == ["image", "prompt", "copy-paste"]
    assert [float(one["prompt"]) for one in chosen] == pytest.approx([float(row["prompt"]) for row in rows], abs=2e-3)


def test_missing_scores_are_empty_and_not_in_the_mean(folder: Path) -> None:
    for name, level in (("dark", 51), ("grey", 102), ("light", 204)):
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{name}.png")
    images = [part for name in ("light", "dark", "grey") for part in ("--image", f"{name}.png")]
    arguments = ["--reward", "own.py:first_half", "--option", "value=1e1", *images]
    done = score(*arguments)
    assert done.exit_code == 0, done.stderr
    shown = [line.split("│")[1:3] for line in done.stdout.splitlines() if "│" in line]
    assert [(name.strip(), value.strip()) for name, value in shown] == [
        ("light.png", "-"), ("dark.png", "2.000"), ("grey.png", "4.000"), ("mean", "3.000"),
    ]  # fmt: skip
    assert score(*arguments, "--out", "s.csv").exit_code == 0
    assert (folder / "s.csv").read_text() == "image,own.py:first_half\nlight.png,\ndark.png,2\ngrey.png,4\n"
