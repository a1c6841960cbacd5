"""`cgrpo score`: pictures from files, scored as a training would, as a table or a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from customized_grpo.config import ConfigError, RewardConfig
from customized_grpo.data import pictures
from customized_grpo.data.errors import DataError
from customized_grpo.protocols import Pair
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.scores import judged
from customized_grpo.utils.pixels import to_tensor
from customized_grpo.utils.prompts import check_prompt
from customized_grpo.utils.records import write_bytes
from customized_grpo.utils.terminal import ABSENT

_BATCH = 64  # pictures of one size that a reward sees at a time
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def find_pictures(images: Sequence[Path], folder: Path | None) -> list[Path]:
    """The given pictures, and those of a folder by name. Raises ConfigError or DataError, before any is scored."""
    found = list(images)
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give the folder of the pictures")
        found += sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        where = f"{folder}: holds no picture ({', '.join(_SUFFIXES)})" if folder else "no picture to score"
        raise ConfigError(f"{where}; give --image, or --images FOLDER")
    if broken := pictures.problems(found, pictures.check):
        raise DataError(broken.values())
    return found


def read_pair(prompt: str, references: Sequence[Path], masks: Sequence[Path], subject: str | None) -> Pair:
    """What the pictures should show. Raises ConfigError or DataError."""
    check_prompt(prompt, "--prompt")
    if masks and len(masks) != len(references):
        raise ConfigError(f"--mask is given {len(masks)} times for {len(references)} of --reference; give one each")
    shown = tuple(pictures.load(path) for path in references)
    drawn = [pictures.load_mask(path, reference.size) for path, reference in zip(masks, shown, strict=False)]
    return Pair("score", prompt, shown, tuple(drawn or [None] * len(shown)), subject)


def score_files(
    rewards: Sequence[RewardConfig], device: torch.device, files: Sequence[Path], pair: Pair
) -> dict[str, list[float]]:
    """Scores by the reward's name, one of each file; NaN where a reward could not score it."""
    judges = [build_reward(reward, device) for reward in rewards]
    scores: dict[str, list[float]] = {judge.name: [] for judge in judges}
    for images in _batches(files):
        for judge in judges:
            scores[judge.name] += judged(judge, images, [pair] * len(images)).tolist()
    return scores


def write_csv(path: Path, files: Sequence[Path], scores: dict[str, list[float]]) -> None:
    """One line for each picture, the file replaced in one move; a score that is not there is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *scores])
    for i, file in enumerate(files):
        writer.writerow(
            [str(file), *("" if math.isnan(column[i]) else f"{column[i]:.6g}" for column in scores.values())]
        )
    write_bytes(path, text.getvalue().encode("utf-8"))


def show(console: Console, files: Sequence[Path], scores: dict[str, list[float]]) -> None:
    """The same as a table, and the means of several pictures over the scores that are there."""
    table = Table("image")
    for name in scores:
        table.add_column(Text(name), justify="right")
    for i, file in enumerate(files):
        table.add_row(Text(str(file)), *(_shown(column[i]) for column in scores.values()))
    if len(files) > 1:
        there = [[value for value in column if not math.isnan(value)] for column in scores.values()]
        table.add_section()
        table.add_row("mean", *(_shown(sum(values) / len(values) if values else math.nan) for values in there))
    console.print(table)


def _batches(files: Sequence[Path]) -> Iterator[Tensor]:
    """Pictures (B, 3, H, W) in [0, 1] in the files' order; neighbours of one size together."""
    loaded = (to_tensor(pictures.load(path)) for path in files)
    for _, group in groupby(loaded, key=lambda picture: picture.shape):
        while batch := list(islice(group, _BATCH)):
            yield torch.stack(batch)


def _shown(value: float) -> str:
    return ABSENT if math.isnan(value) else f"{value:.3f}"
