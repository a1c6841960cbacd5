"""Deterministic samples of a whole dataset and their scores, stored in a folder.

The noise of an image depends on (seed, pair, image) only: two policies evaluated alike start from the same noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from customized_grpo.config import EvaluationConfig
from customized_grpo.data import image_files
from customized_grpo.data.fingerprints import Fingerprint, difference, fingerprint
from customized_grpo.policies.sharding import any_sharded
from customized_grpo.protocols import Pair, PairDataset, Policy, Reward
from customized_grpo.rewards import RewardError
from customized_grpo.trainer.memory import BatchSize, measure_sampling
from customized_grpo.trainer.processes import ALONE, Processes
from customized_grpo.trainer.rollout import own_noise_levels, sample_each
from customized_grpo.trainer.scoring import score_sizes, why_stop
from customized_grpo.utils.pixels import save_image, to_image
from customized_grpo.utils.records import read_regular, write_json

_SCORES = "scores.json"


@dataclass(frozen=True)
class Evaluation:
    """Scores and image files; entry i is image `i % images` of pair `i // images`. A missing score is NaN."""

    scores: dict[str, list[float]]
    images: list[Path]

    def mean(self, name: str) -> float:
        """Return the mean of the scores that are there; NaN if there are none."""
        values = [value for value in self.scores[name] if math.isfinite(value)]
        return sum(values) / len(values) if values else math.nan

    @property
    def means(self) -> dict[str, float]:
        """Mean score by reward name."""
        return {name: self.mean(name) for name in self.scores}


class _Stored(BaseModel):
    """The part of scores.json that is read."""

    scores: dict[str, list[float | None]]
    images: list[str]
    settings: dict[str, Any]
    data: Fingerprint = {}


def evaluate(
    policy: Policy,
    dataset: PairDataset,
    rewards: Sequence[Reward],
    config: EvaluationConfig,
    folder: Path,
    *,
    batch_size: int | Literal["auto"],
    seed: int = 0,
    processes: Processes = ALONE,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Generate `config.images` images of every pair into `folder` (PNG), score them, and write scores.json.

    All `processes` call this and see the folder. Each generates some of the batches; results do not depend on their
    number.

    Args:
        policy: Policy that generates.
        dataset: Pairs to generate.
        rewards: Rewards and monitors that score.
        config: Settings of the evaluation.
        folder: Folder of the evaluation; created if needed.
        batch_size: Images per batch.
        seed: Seed of the random numbers that rewards may use; those of the images have `config.seed`.
        processes: Processes that share the work.
        progress: Called with the number of images that all processes have scored so far.

    Raises:
        RewardError: A reward failed, or has no score for any image; raised on all processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if processes.is_main:
        (folder / _SCORES).unlink(missing_ok=True)  # it marks a complete evaluation
    names = [f"{number:05d}-{image}.png" for number in range(len(dataset)) for image in range(config.images)]
    scores = torch.full((len(rewards), len(names)), torch.nan)
    own: list[int] = []  # numbers of this process's images, in whole batches
    overflowed = 0
    sharded = any_sharded(policy.trainable().values())
    size = BatchSize("rollout.batch_size", batch_size, recovers=not sharded)
    if size.auto:
        first, share = dataset[0], -(-len(names) // processes.count)
        measure_sampling(size, policy, policy.encode(first.prompt, first.references), share, processes.least)
    per_chunk = max(1, size.size // config.images)
    chunks = [range(start, min(start + per_chunk, len(dataset))) for start in range(0, len(dataset), per_chunk)]
    for turn in range(0, len(chunks), processes.count):
        index, failure = turn + processes.index, None
        if index < len(chunks) or sharded:  # a sharded model is called by all processes together
            chunk = chunks[min(index, len(chunks) - 1)]
            pairs = [dataset[i] for i in chunk]
            images = _generate(policy, pairs, config, size, processes.most if sharded else lambda own: own)
        if index < len(chunks):
            rows = range(chunk.start * config.images, chunk.stop * config.images)
            shown = [pair for pair in pairs for _ in range(config.images)]
            scored = score_sizes(rewards, images, shown, (seed, "evaluation", rows.start))
            failure = scored.failure
            overflowed += sum(not bool(image.isfinite().all()) for image in images)
            scores[:, list(rows)] = torch.stack([scored.scores[reward.name] for reward in rewards])
            for number, image in zip(rows, images, strict=True):
                save_image(to_image(image), folder / names[number])
            own += rows
        reason = why_stop(0, 1, failure, 1.0, processes.sum)
        if reason is not None:
            raise RewardError(reason) from failure
        progress(chunks[min(turn + processes.count, len(chunks)) - 1].stop * config.images)
    scores = processes.collect(scores[:, own].T, own, len(names)).T
    overflowed = int(processes.sum(torch.tensor(overflowed)))
    unscored = [repr(reward.name) for reward, row in zip(rewards, scores, strict=True) if not row.isfinite().any()]
    if unscored:
        remedy = f"not finite are {overflowed} of them: set policy.dtype to float32"
        raise RewardError(
            f"none of {len(names)} images of the evaluation has a score by {', '.join(unscored)}; "
            + (remedy if overflowed else "see the reward's warnings")
        )
    by_reward = {reward.name: row.tolist() for reward, row in zip(rewards, scores, strict=True)}
    result = Evaluation(by_reward, [folder / name for name in names])
    if processes.is_main:
        settings = config.model_dump(mode="json")
        stored = {"means": result.means, "scores": result.scores, "images": names, "settings": settings}
        stored["data"] = fingerprint(dataset)
        write_json(folder / _SCORES, stored)
    processes.wait()
    return result


def _generate(
    policy: Policy,
    pairs: Sequence[Pair],
    config: EvaluationConfig,
    size: BatchSize,
    rounds: Callable[[int], int],
) -> list[Tensor]:
    """Generate `config.images` images (3, H, W) of each pair."""
    encoded = [policy.encode(pair.prompt, pair.references) for pair in pairs]
    conditions = [one for one in encoded for _ in range(config.images)]
    keys = [(config.seed, "evaluation", pair.key, i) for pair in pairs for i in range(config.images)]
    return sample_each(policy, conditions, keys, lambda one: own_noise_levels(policy, config.steps, one), size, rounds)


def read_evaluation(
    folder: Path, config: EvaluationConfig | None, dataset: PairDataset | None = None
) -> Evaluation | None:
    """Return the evaluation in a folder; None if it is incomplete or was made with other settings than `config`.

    With the `dataset` also None if it was made of other data, or if an image is missing or damaged.
    """
    try:
        stored = _Stored.model_validate_json(read_regular(folder / _SCORES))
    except (OSError, ValueError):
        return None
    if config is not None and stored.settings != config.model_dump(mode="json"):
        return None
    scores = {name: [math.nan if v is None else v for v in values] for name, values in stored.scores.items()}
    images = [folder / name for name in stored.images]
    if dataset is not None:
        count = len(dataset) * stored.settings.get("images", 1)
        if {len(images), *map(len, scores.values())} != {count} or difference(stored.data, fingerprint(dataset)):
            return None
        if image_files.problems(images, partial(image_files.check, quick=True)):
            return None
    return Evaluation(scores, images)
