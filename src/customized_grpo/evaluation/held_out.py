"""Views of a held-out evaluation: the scores that span a plane, the guards, and a grid of a few pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from customized_grpo.config import Config
from customized_grpo.figures.grids import image_grid
from customized_grpo.protocols import PairDataset
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.evaluation import Evaluation

_SHOWN = 6  # pairs of a grid


def axes_of(config: Config) -> dict[str, tuple[str, str]]:
    """Return the planes by name: (identity, prompt) of the rewards, and of the independent monitors."""
    planes = {}
    for name, scorers in (("rewards", config.rewards), ("independent", config.evaluation.monitors)):
        first = {scorer.role: reward_name(scorer) for scorer in reversed(scorers)}
        if "identity" in first and "prompt" in first:
            planes[name] = (first["identity"], first["prompt"])
    return planes


def guards_of(config: Config) -> list[str]:
    """Return the names of the scores that are not trained on and for which higher is worse."""
    return [reward_name(scorer) for scorer in [*config.rewards, *config.evaluation.monitors] if scorer.role == "guard"]


def shown_pairs(count: int) -> list[int]:
    """Return the indices of at most six of `count` pairs, evenly spread."""
    return [i * count // _SHOWN for i in range(_SHOWN)] if count > _SHOWN else list(range(count))


def evaluation_grid(path: Path, pairs: PairDataset, images: int, columns: Mapping[str, Evaluation]) -> None:
    """Write a PNG of a few pairs: the reference, and the first of the `images` per pair of each evaluation."""
    shown = shown_pairs(len(pairs))
    rows = [[pairs[i].references[0], *(Image.open(one.images[i * images]) for one in columns.values())] for i in shown]
    image_grid(path, rows, [pairs[i].prompt for i in shown], ("reference", *columns))
