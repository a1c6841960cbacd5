"""Scores of sampled images: in a background thread while the next batch is sampled, or when they are needed."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import RewardError, score
from customized_grpo.utils.devices import same_accelerator

CONSTANT = 3  #: first iterations over which a reward must vary
_WAITING = 2  # batches that may wait for their scores while the next is sampled


@dataclass(frozen=True)
class BatchScores:
    """Scores (B,) by reward name, NaN where missing; all are missing if a reward failed altogether."""

    scores: dict[str, Tensor]
    failure: RewardError | None = None


class Scoring:
    """Scores batches of images by several rewards, in order of submission.

    With `overlap` a thread scores while the caller continues, with at most two batches waiting; the scores are the
    same. `seed` is the key of random numbers for rewards, together with the number of images submitted before.
    """

    def __init__(self, rewards: Sequence[Reward], *, overlap: bool, seed: Sequence[int | str] = ()) -> None:
        self._rewards, self._seed, self._submitted = rewards, seed, 0
        self._thread: Executor | None = None
        if overlap:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring", initializer=same_accelerator())
        self._pending: list[Callable[[], BatchScores]] = []
        self._done: list[BatchScores] = []

    def submit(self, images: Tensor, pairs: Sequence[Pair]) -> None:
        """Submit images (B, 3, H, W) in [0, 1]; images[i] was generated for pairs[i]."""
        scores = partial(score_images, self._rewards, images, pairs, (*self._seed, self._submitted))
        self._submitted += len(images)
        if self._thread is None:
            self._pending.append(scores)
            return
        if len(self._pending) == _WAITING:
            self._done.append(self._pending.pop(0)())
        self._pending.append(self._thread.submit(scores).result)

    def results(self) -> list[BatchScores]:
        """Return the scores of all submitted batches."""
        while self._pending:
            self._done.append(self._pending.pop(0)())
        self.close()
        return self._done

    def close(self) -> None:
        """End the thread without waiting for it."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def score_images(
    rewards: Sequence[Reward], images: Tensor, pairs: Sequence[Pair], seed: Sequence[int | str] = ()
) -> BatchScores:
    """Score images (B, 3, H, W); a score is missing where its image is not finite. `seed` is as for `score`."""
    finite = images.isfinite().flatten(1).all(1).cpu()
    try:
        # Rewards get zeros in place of NaN and infinity, which they might score or fail on.
        scores = score(rewards, images.nan_to_num(0.0, 0.0, 0.0), pairs, seed=seed)
        return BatchScores({name: values.masked_fill(~finite, torch.nan) for name, values in scores.items()})
    except RewardError as error:
        # Returned, not raised: all processes must learn of it before any of them stops.
        return BatchScores({reward.name: torch.full((len(pairs),), torch.nan) for reward in rewards}, error)


def score_sizes(
    rewards: Sequence[Reward], images: Sequence[Tensor], pairs: Sequence[Pair], seed: Sequence[int | str] = ()
) -> BatchScores:
    """Score images (3, H, W) of any sizes, those of each size together, as `score_images`."""
    scores = {reward.name: torch.full((len(images),), torch.nan) for reward in rewards}
    failure = None
    for shape in dict.fromkeys(image.shape for image in images):
        rows = [row for row, image in enumerate(images) if image.shape == shape]
        stacked, shown = torch.stack([images[row] for row in rows]), [pairs[row] for row in rows]
        scored = score_images(rewards, stacked, shown, (*seed, rows[0]))
        failure = failure or scored.failure
        for name, values in scored.scores.items():
            scores[name][rows] = values
    return BatchScores(scores, failure)


def constant_rewards(scores: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Return the names of the rewards that gave every image of several iterations the same score."""
    together = {name: torch.cat([one[name].flatten() for one in scores]) for name in scores[0]}
    return [name for name, values in together.items() if len(set(values[values.isfinite()].tolist())) == 1]


def why_stop(
    missing: int,
    images: int,
    failure: RewardError | None,
    limit: float,
    reduce: Callable[[Tensor], Tensor],
    overflowed: int = 0,
) -> str | None:
    """Return why training cannot continue, the same on all processes, or None.

    Of this process's `images`, `missing` lack a score and `overflowed` are not finite; `failure` is the error of a
    reward that failed altogether. `limit` is the share of all processes' images that may lack a score. `reduce` sums
    over processes.
    """
    counts = torch.tensor([missing, images, float(failure is not None)], dtype=torch.float64)
    lost, sampled, failed = reduce(counts).tolist()
    if failed:
        return str(failure) if failure is not None else "a reward failed on another process"
    if lost <= limit * sampled:
        return None
    reason = f"{lost:.0f} of {sampled:.0f} images have no score, more than train.max_missing={limit:g} allows"
    remedy = f"; {overflowed} images are not finite: set policy.dtype to float32, or lower rollout.eta"
    return reason + (remedy if overflowed else "")
