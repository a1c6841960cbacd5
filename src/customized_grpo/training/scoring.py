"""Pictures and scores of an iteration's images, batch by batch as these are drawn; and what of missing scores."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.protocols import Pair, Policy, Reward
from customized_grpo.rewards import RewardError, score
from customized_grpo.training.memory import BatchSize
from customized_grpo.training.rollout import Trajectories

_WAITING = 2  # batches that may wait for their scores while the next is drawn


@dataclass(frozen=True)
class Scored:
    """The batches that were drawn, and the `pictures` (images, 3, H, W) in [0, 1] and `scores` (images,) of all.

    Pictures and scores, by the rewards' names, are in the order of the images. A missing score is NaN; `failure` is
    the first error of a reward that failed altogether, in whose batch all scores are missing. `seconds` is how long
    drawing took, and how long it then took until the last score was there.
    """

    drawn: list[Trajectories]
    pictures: Tensor
    scores: dict[str, Tensor]
    failure: RewardError | None
    seconds: tuple[float, float]


def score_drawn(
    policy: Policy,
    batches: Iterable[Trajectories],
    rewards: Sequence[Reward],
    pairs: Sequence[Pair],
    *,
    overlap: bool = False,
    size: BatchSize | None = None,
) -> Scored:
    """Decode and score batches of images, pairs[i] being what image i should show, as they are drawn.

    With `overlap` a thread scores them while the next are drawn, at most two waiting for it; without, they are scored
    when all are drawn. The judges see the same batches in the same order either way, so the scores are the same.
    Where memory runs out, `size` shrinks, and a batch is decoded in parts.
    """
    size = size or BatchSize("rollout.batch_size", "auto")
    began = time.perf_counter()
    drawn: list[Trajectories] = []
    pictures: list[Tensor] = []
    waiting: deque[Callable[[], Judged]] = deque()
    judged: list[Judged] = []
    with _thread(overlap) as thread:
        for batch in batches:
            drawn.append(batch)
            parts = size.run(len(batch), lambda part, batch=batch: policy.decode(batch.clean[part]))  # type: ignore[misc]
            pictures.append(torch.cat(list(parts)))
            shown = [pairs[image] for image in batch.images.tolist()]
            if thread is not None and len(waiting) == _WAITING:
                judged.append(waiting.popleft()())
            waiting.append(_begin(thread, rewards, pictures[-1], shown))
        done_drawing = time.perf_counter()
        judged.extend(result() for result in waiting)
    order = torch.cat([batch.images for batch in drawn]).argsort()
    together = torch.cat(pictures)
    scores = {name: torch.cat([part.scores[name] for part in judged])[order] for name in judged[0].scores}
    return Scored(
        drawn,
        together[order.to(together.device)],
        scores,
        next((part.failure for part in judged if part.failure is not None), None),
        (done_drawing - began, time.perf_counter() - done_drawing),
    )


def why_stop(
    missing: int,
    images: int,
    failure: RewardError | None,
    limit: float,
    reduce: Callable[[Tensor], Tensor],
    overflowed: int = 0,
) -> str | None:
    """What forbids to go on, the same for all processes, or None.

    `missing` of the `images` of this process lack a score, a share of which `limit` is allowed over all processes;
    `failure` as in `Scored`. `overflowed` is how many of this process's have a picture that is not finite, for the text
    alone. `reduce` sums over processes.
    """
    counts = torch.tensor([missing, images, float(failure is not None)], dtype=torch.float64)
    lost, drawn, failed = reduce(counts).tolist()
    if failed:
        return str(failure) if failure is not None else "a reward failed on another process"
    if lost > limit * drawn:
        told = f"{lost:.0f} of {drawn:.0f} images have no score, more than train.max_missing={limit:g} allows"
        numbers = f"; {overflowed} are no finite numbers: set policy.dtype to float32, or lower rollout.eta"
        return told + numbers if overflowed else told
    return None


@contextmanager
def _thread(wanted: bool) -> Iterator[Executor | None]:
    """A thread for scoring, where it is wanted. An error that leaves the block does not wait for it."""
    if not wanted:
        yield None
        return
    thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
    try:
        yield thread
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Judged:
    """Scores (B,) by the rewards' names, all missing where a reward failed."""

    scores: dict[str, Tensor]
    failure: RewardError | None = None


def _begin(
    thread: Executor | None, rewards: Sequence[Reward], pictures: Tensor, pairs: list[Pair]
) -> Callable[[], Judged]:
    """What gives the scores of a batch when called: those that the thread is making, or made then."""
    if thread is None:
        return lambda: judge(rewards, pictures, pairs)
    future: Future[Judged] = thread.submit(judge, rewards, pictures, pairs)
    return future.result


def finite_images(pictures: Tensor) -> Tensor:
    """Which pictures (B, 3, H, W) are made of finite numbers alone, (B,) on the CPU."""
    return pictures.isfinite().flatten(1).all(1).cpu()


def judge(rewards: Sequence[Reward], pictures: Tensor, pairs: Sequence[Pair]) -> Judged:
    """Scores of pictures (B, 3, H, W), missing where one is not finite, and the error of a reward that fails."""
    # A judge would make a score, or an error, of numbers that overflowed: it sees black, and is not listened to.
    finite = finite_images(pictures)
    try:
        scores = score(rewards, pictures.nan_to_num(0.0, 0.0, 0.0), pairs)
        return Judged({name: values.masked_fill(~finite, torch.nan) for name, values in scores.items()})
    except RewardError as error:
        # All processes must learn of it before any of them stops, or the others would wait for it.
        return Judged({reward.name: torch.full((len(pairs),), torch.nan) for reward in rewards}, error)
