"""Pictures of a whole dataset by deterministic sampling, and their scores, kept in a folder.

The noise of a picture belongs to (seed, pair, image): two policies evaluated alike start from the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from customized_grpo.config import EvaluationConfig
from customized_grpo.policies.sharding import is_sharded
from customized_grpo.protocols import Conditions, Pair, PairDataset, Policy, Reward
from customized_grpo.rewards import RewardError
from customized_grpo.trainer.memory import BatchSize, measure_drawing
from customized_grpo.trainer.processes import ALONE, Processes
from customized_grpo.trainer.rollout import batches, image_noise, sample_pictures
from customized_grpo.trainer.scoring import finite_images, score_images, why_stop
from customized_grpo.utils.pixels import to_image
from customized_grpo.utils.records import write_json

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


class _Kept(BaseModel):
    """What is read again of scores.json."""

    scores: dict[str, list[float | None]]
    pictures: list[str]
    settings: dict[str, Any]


def evaluate(
    policy: Policy,
    dataset: PairDataset,
    rewards: Sequence[Reward],
    config: EvaluationConfig,
    folder: Path,
    *,
    batch_size: int | Literal["auto"],
    processes: Processes = ALONE,
) -> Evaluation:
    """Draw `config.images` pictures of every pair into `folder` (PNG), score them, write scores.json.

    With several `processes`, all of which call this and see the folder, each draws some of the batches; these are the
    same however many there are, and so are the scores, which all return.

    Raises RewardError, on all processes, where a judge fails or has a score for none of the pictures: nothing is kept
    that would be taken for an evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if processes.is_main:
        (folder / _SCORES).unlink(missing_ok=True)  # which says that the pictures are all there, and of one policy
    sigmas = policy.sigmas(config.steps).to(policy.device)
    sharded = any(map(is_sharded, policy.trainable().values()))
    size = BatchSize("rollout.batch_size", batch_size, recovers=not sharded)
    if size.auto:
        first, share = dataset[0], -(-len(dataset) * config.images // processes.count)
        measure_drawing(size, policy, policy.encode(first.prompt, first.references), share, processes.least)
    per_chunk = max(1, size.size // config.images)
    chunks = [range(start, min(start + per_chunk, len(dataset))) for start in range(0, len(dataset), per_chunk)]
    scores = torch.full((len(rewards), len(dataset) * config.images), torch.nan)
    own: list[int] = []
    overflowed = 0
    for turn in range(0, len(chunks), processes.count):
        mine, failure = turn + processes.index, None
        has_one = mine < len(chunks)
        if has_one or sharded:  # a sharded model is called by all at once: without a chunk, for the last one's pictures
            chunk = chunks[min(mine, len(chunks) - 1)]
            pairs = [dataset[i] for i in chunk]
            images = _draw(policy, pairs, config, sigmas, size, processes.most if sharded else lambda own: own)
        if has_one:
            rows = range(chunk.start * config.images, chunk.stop * config.images)
            pictures = torch.stack(images)
            judged = score_images(rewards, pictures, [pair for pair in pairs for _ in range(config.images)])
            failure = judged.failure
            overflowed += int((~finite_images(pictures)).sum())
            for row, reward in enumerate(rewards):
                scores[row, list(rows)] = judged.scores[reward.name]
            for number, picture in zip(rows, images, strict=True):
                to_image(picture).save(folder / _name(number, config.images))
            own += rows
        trouble = why_stop(0, 1, failure, 1.0, processes.sum)
        if trouble is not None:
            raise RewardError(trouble) from failure
    scores = processes.collect(scores[:, own].T, own, scores.shape[1]).T
    _check_scored(rewards, scores, int(processes.sum(torch.tensor(overflowed))))
    result = _result(rewards, scores, config, folder, write=processes.is_main)
    processes.wait()
    return result


def _result(
    rewards: Sequence[Reward], scores: Tensor, config: EvaluationConfig, folder: Path, *, write: bool
) -> Evaluation:
    """The evaluation of scores (rewards, images), written to its folder by the process that writes."""
    names = [_name(number, config.images) for number in range(scores.shape[1])]
    found = {reward.name: values.tolist() for reward, values in zip(rewards, scores, strict=True)}
    result = Evaluation(found, [folder / name for name in names])
    if write:
        kept = {"means": result.means, "scores": result.scores, "pictures": names, "settings": _settings(config)}
        write_json(folder / _SCORES, kept)
    return result


def _check_scored(rewards: Sequence[Reward], scores: Tensor, overflowed: int) -> None:
    """Raises RewardError where a judge has no score (judges, pictures) for any picture.

    `overflowed` is how many pictures are not finite, for the text alone.
    """
    silent = [repr(reward.name) for reward, found in zip(rewards, scores, strict=True) if not found.isfinite().any()]
    if silent:
        none = f"none of {scores.shape[1]} pictures of the evaluation has a score by {', '.join(silent)}"
        numbers = f"not finite are {overflowed} of them: set policy.dtype to float32"
        raise RewardError(f"{none}; {numbers if overflowed else 'correct it, or see what its warnings say'}")


def _draw(
    policy: Policy,
    pairs: Sequence[Pair],
    config: EvaluationConfig,
    sigmas: Tensor,
    size: BatchSize,
    rounds: Callable[[int], int],
) -> list[Tensor]:
    """`config.images` pictures (3, H, W) of each pair."""
    encoded = [policy.encode(pair.prompt, pair.references) for pair in pairs]
    conditions = [one for one in encoded for _ in range(config.images)]
    noise = torch.cat(
        [image_noise(policy, 1, config.seed, "evaluation", p.key, i) for p in pairs for i in range(config.images)]
    )
    images: list[Tensor] = [torch.empty(0)] * len(conditions)

    def draw(rows: Sequence[int]) -> Tensor:
        batch = Conditions.join([conditions[i] for i in rows])
        return sample_pictures(policy, batch, noise[rows], sigmas)

    together = batches(conditions, size.size)
    waits = rounds(len(together)) - len(together)
    for rows in together:
        drawn = torch.cat(list(size.run(len(rows), lambda part, rows=rows: draw(rows[part]))))  # type: ignore[misc]
        for i, picture in zip(rows, drawn, strict=True):
            images[i] = picture
    for _ in range(waits):
        draw(together[0])
    return images


def _name(number: int, images: int) -> str:
    return f"{number // images:05d}-{number % images}.png"


def read_evaluation(folder: Path, config: EvaluationConfig | None) -> Evaluation | None:
    """What `evaluate` left in a folder, or None where it did not finish or was set otherwise than `config`."""
    try:
        kept = _Kept.model_validate_json((folder / _SCORES).read_bytes())
    except (OSError, ValidationError):
        return None
    if config is not None and kept.settings != _settings(config):
        return None
    scores = {name: [math.nan if v is None else v for v in values] for name, values in kept.scores.items()}
    return Evaluation(scores, [folder / name for name in kept.pictures])


def _settings(config: EvaluationConfig) -> dict[str, object]:
    return config.model_dump(mode="json")
