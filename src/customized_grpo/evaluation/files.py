"""`cgrpo score`: scores of image files, as in training, as a table or a CSV file."""

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from customized_grpo.config import ConfigError, RewardConfig
from customized_grpo.data import image_files
from customized_grpo.data.errors import DataError
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import build_reward, score
from customized_grpo.trainer.prompts import cut_prompts
from customized_grpo.utils.pixels import to_tensor
from customized_grpo.utils.prompts import check_prompt
from customized_grpo.utils.records import write_bytes
from customized_grpo.utils.tables import csv_cell
from customized_grpo.utils.terminal import ABSENT

_LOG = logging.getLogger(__name__)
_BATCH = 64  # images that are loaded and scored at a time


def find_images(images: Sequence[Path], folder: Path | None) -> list[Path]:
    """Return the given images and those of a folder by name. Raises ConfigError or DataError if one cannot be used."""
    found = list(images)
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give the folder of the images")
        found += sorted(path for path in folder.iterdir() if path.suffix.lower() in image_files.SUFFIXES)
    if not found:
        where = f"{folder}: no image in it ({', '.join(image_files.SUFFIXES)})" if folder else "no image to score"
        raise ConfigError(f"{where}; give --image, or --images FOLDER")
    if broken := image_files.problems(found, image_files.check):
        raise DataError(broken.values())
    return found


def read_pair(prompt: str, references: Sequence[Path], masks: Sequence[Path], subject: str | None) -> Pair:
    """Read the prompt, references and masks to score against. Raises ConfigError or DataError."""
    check_prompt(prompt, "--prompt")
    if masks and len(masks) != len(references):
        raise ConfigError(f"--mask is given {len(masks)} times for {len(references)} of --reference; give one each")
    shown = tuple(image_files.load(path) for path in references)
    loaded = [image_files.load_mask(path, reference.size) for path, reference in zip(masks, shown, strict=False)]
    return Pair("score", prompt, shown, tuple(loaded or [None] * len(shown)), subject)


def score_files(
    rewards: Sequence[RewardConfig], device: torch.device, files: Sequence[Path], pair: Pair
) -> dict[str, list[float]]:
    """Return the scores of each file by the reward's name, NaN if a reward could not score it."""
    scorers = [build_reward(reward, device) for reward in rewards]
    for scorer in scorers:
        if line := cut_prompts([pair.prompt], f"reward {scorer.name!r}", scorer):
            _LOG.warning("%s", line)
    scores: dict[str, list[float]] = {scorer.name: [] for scorer in scorers}
    for start in range(0, len(files), _BATCH):
        images = [image_files.load(path) for path in files[start : start + _BATCH]]
        for scorer in scorers:
            scores[scorer.name] += score_loaded(scorer, images, [pair] * len(images))
    return scores


def score_loaded(scorer: Reward, images: Sequence[Image.Image], pairs: Sequence[Pair]) -> list[float]:
    """Score images of any sizes, those of one size together."""
    scores = [math.nan] * len(images)
    for size in dict.fromkeys(image.size for image in images):
        rows = [row for row, image in enumerate(images) if image.size == size]
        batch = torch.stack([to_tensor(images[row]) for row in rows])
        found = score([scorer], batch, [pairs[row] for row in rows])[scorer.name]
        for row, value in zip(rows, found.tolist(), strict=True):
            scores[row] = value
    return scores


def write_csv(path: Path, files: Sequence[Path], scores: dict[str, list[float]]) -> None:
    """Write one line for each image; missing scores are empty. The file is replaced atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *map(csv_cell, scores)])
    for i, file in enumerate(files):
        row = [column[i] for column in scores.values()]
        name = str(file) if csv_cell(str(file)) == str(file) else f"./{file}"  # the same file, and no formula
        writer.writerow([name, *("" if math.isnan(value) else f"{value:.6g}" for value in row)])
    write_bytes(path, text.getvalue().encode("utf-8"))


def show(console: Console, files: Sequence[Path], scores: dict[str, list[float]]) -> None:
    """Print a table of the scores, with their means if there are several images."""
    table = Table("image")
    for name in scores:
        table.add_column(Text(name), justify="right")
    for i, file in enumerate(files):
        table.add_row(Text(str(file)), *(_shown([column[i]]) for column in scores.values()))
    if len(files) > 1:
        table.add_section()
        table.add_row("mean", *map(_shown, scores.values()))
    console.print(table)


def _shown(values: Sequence[float]) -> str:
    """Format the mean of the values that are not missing."""
    found = [value for value in values if not math.isnan(value)]
    return f"{sum(found) / len(found):.3f}" if found else ABSENT
