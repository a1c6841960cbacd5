"""A picture of a few pairs: their references, and what each evaluation drew of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from customized_grpo.figures.grids import image_grid
from customized_grpo.protocols import PairDataset
from customized_grpo.trainer.evaluation import Evaluation

_SHOWN = 6  # pairs


def shown_pairs(count: int) -> list[int]:
    """Which of `count` pairs are looked at: all of a few, else some of them, evenly spread."""
    return [i * count // _SHOWN for i in range(_SHOWN)] if count > _SHOWN else list(range(count))


def evaluation_grid(path: Path, pairs: PairDataset, images: int, columns: Mapping[str, Evaluation]) -> None:
    """A few pairs, evenly spread: the reference, and the first picture that each evaluation drew of it, PNG.

    `images` is how many pictures of each pair the evaluations hold.
    """
    shown = shown_pairs(len(pairs))
    rows = [
        [pairs[i].references[0], *(Image.open(drawn.pictures[i * images]) for drawn in columns.values())] for i in shown
    ]
    image_grid(path, rows, [pairs[i].prompt for i in shown], ("reference", *columns))
