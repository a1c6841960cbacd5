"""Pictures of a whole dataset by deterministic sampling, and their scores, kept in a folder.

The noise of a picture belongs to (seed, pair, image): two policies evaluated alike start from the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.config import EvaluationConfig
from customized_grpo.protocols import Conditions, PairDataset, Policy, Reward
from customized_grpo.records import write_json
from customized_grpo.rewards import score
from customized_grpo.rewards.frame import to_image
from customized_grpo.training.rollout import batches, image_noise, sample_pictures

_SCORES = "scores.json"


@dataclass(frozen=True)
class Evaluation:
    """`scores[name][i]` and `pictures[i]` belong to image `i % images` of pair `i // images`.

    A missing score is NaN.
    """

    scores: dict[str, list[float]]
    pictures: list[Path]

    def mean(self, name: str) -> float:
        """Over the pictures that have this score; NaN where none has."""
        values = [value for value in self.scores[name] if math.isfinite(value)]
        return sum(values) / len(values) if values else math.nan

    @property
    def means(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self.scores}


def evaluate(
    policy: Policy,
    dataset: PairDataset,
    rewards: Sequence[Reward],
    config: EvaluationConfig,
    folder: Path,
    *,
    batch_size: int,
) -> Evaluation:
    """Draw `config.images` pictures of every pair into `folder` (PNG), score them, write scores.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SCORES).unlink(missing_ok=True)  # which says that the pictures are all there, and of one policy
    sigmas = policy.sigmas(config.steps).to(policy.device)
    scores: dict[str, list[Tensor]] = {reward.name: [] for reward in rewards}
    pictures: list[Path] = []
    per_chunk = max(1, batch_size // config.images)
    for start in range(0, len(dataset), per_chunk):
        pairs = [dataset[i] for i in range(start, min(start + per_chunk, len(dataset)))]
        drawn = [pair for pair in pairs for _ in range(config.images)]
        encoded = [policy.encode(pair.prompt, pair.references) for pair in pairs]
        conditions = [one for one in encoded for _ in range(config.images)]
        noise = torch.cat(
            [image_noise(policy, 1, config.seed, "evaluation", p.key, i) for p in pairs for i in range(config.images)]
        )
        images: list[Tensor] = [torch.empty(0)] * len(drawn)
        for rows in batches(conditions, batch_size):
            batch = Conditions.join([conditions[i] for i in rows])
            for i, picture in zip(rows, sample_pictures(policy, batch, noise[rows], sigmas), strict=True):
                images[i] = picture
        for name, values in score(rewards, torch.stack(images), drawn).items():
            scores[name].append(values)
        for picture in images:
            path = folder / f"{len(pictures) // config.images:05d}-{len(pictures) % config.images}.png"
            to_image(picture).save(path)
            pictures.append(path)
    result = Evaluation({name: torch.cat(parts).tolist() for name, parts in scores.items()}, pictures)
    names = [path.name for path in pictures]
    kept = {"means": result.means, "scores": result.scores, "pictures": names, "settings": _settings(config)}
    write_json(folder / _SCORES, kept)
    return result


def read_evaluation(folder: Path, config: EvaluationConfig | None) -> Evaluation | None:
    """What `evaluate` left in a folder, or None where it did not finish or was set otherwise than `config`."""
    try:
        kept = json.loads((folder / _SCORES).read_text(encoding="utf-8"))
        if config is not None and kept["settings"] != _settings(config):
            return None
        scores = {name: [math.nan if v is None else v for v in values] for name, values in kept["scores"].items()}
        return Evaluation(scores, [folder / name for name in kept["pictures"]])
    except (OSError, ValueError, KeyError):
        return None


def _settings(config: EvaluationConfig) -> dict[str, object]:
    return config.model_dump(mode="json")
