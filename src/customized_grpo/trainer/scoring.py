"""Scores of sampled images: in a background thread while the next batch is sampled, or when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import RewardError, score

_WAITING = 2  # batches that may wait for their scores while the next is sampled


@dataclass(frozen=True)
class BatchScores:
    """Scores (B,) by the rewards' names, NaN where missing; all are missing where a reward failed altogether."""

    scores: dict[str, Tensor]
    failure: RewardError | None = None


class Scoring:
    """Scores batches of images by several rewards, in the order in which they are submitted.

    Args:
        rewards: The reward models.
        overlap: Whether a thread scores while the caller continues; at most two batches then wait for it. The reward
            models get the same batches in the same order either way, so the scores are the same.
    """

    def __init__(self, rewards: Sequence[Reward], *, overlap: bool) -> None:
        self._rewards = rewards
        self._thread: Executor | None = ThreadPoolExecutor(1, thread_name_prefix="scoring") if overlap else None
        self._pending: list[Callable[[], BatchScores]] = []
        self._done: list[BatchScores] = []

    def submit(self, images: Tensor, pairs: Sequence[Pair]) -> None:
        """Have images (B, 3, H, W) in [0, 1] scored; images[i] was generated for pairs[i]."""
        if self._thread is None:
            self._pending.append(lambda: score_images(self._rewards, images, pairs))
            return
        if len(self._pending) == _WAITING:
            self._done.append(self._pending.pop(0)())
        future: Future[BatchScores] = self._thread.submit(score_images, self._rewards, images, pairs)
        self._pending.append(future.result)

    def results(self) -> list[BatchScores]:
        """Return the scores of all submitted batches, waiting for them where needed."""
        while self._pending:
            self._done.append(self._pending.pop(0)())
        self.close()
        return self._done

    def close(self) -> None:
        """End the thread without waiting for what it is doing."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def finite_images(images: Tensor) -> Tensor:
    """Return which of the images (B, 3, H, W) hold finite numbers only, (B,) on the CPU."""
    return images.isfinite().flatten(1).all(1).cpu()


def score_images(rewards: Sequence[Reward], images: Tensor, pairs: Sequence[Pair]) -> BatchScores:
    """Score images (B, 3, H, W); a score is missing where its image is not finite."""
    # A reward model would return a score, or an error, for numbers that overflowed: it gets black, and is ignored.
    finite = finite_images(images)
    try:
        scores = score(rewards, images.nan_to_num(0.0, 0.0, 0.0), pairs)
        return BatchScores({name: values.masked_fill(~finite, torch.nan) for name, values in scores.items()})
    except RewardError as error:
        # All processes must learn of it before any of them stops, or the others would wait for it.
        return BatchScores({reward.name: torch.full((len(pairs),), torch.nan) for reward in rewards}, error)


def why_stop(
    missing: int,
    images: int,
    failure: RewardError | None,
    limit: float,
    reduce: Callable[[Tensor], Tensor],
    overflowed: int = 0,
) -> str | None:
    """Return why training cannot continue, the same on all processes, or None.

    Args:
        missing: How many of this process's images lack a score.
        images: How many images this process has.
        failure: Error of a reward that failed altogether on this process.
        limit: Share of all processes' images that may lack a score.
        reduce: Sums a tensor over processes.
        overflowed: How many of this process's images are not finite, for the text only.
    """
    counts = torch.tensor([missing, images, float(failure is not None)], dtype=torch.float64)
    lost, sampled, failed = reduce(counts).tolist()
    if failed:
        return str(failure) if failure is not None else "a reward failed on another process"
    if lost > limit * sampled:
        told = f"{lost:.0f} of {sampled:.0f} images have no score, more than train.max_missing={limit:g} allows"
        numbers = f"; {overflowed} are no finite numbers: set policy.dtype to float32, or lower rollout.eta"
        return told + numbers if overflowed else told
    return None
