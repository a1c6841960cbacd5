"""Scores of several judges over one set of pictures, checked before anything is learnt from
them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards.base import CallableReward
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.needs import check_needs
from customized_grpo.utils.named import told

_LOG = logging.getLogger(__name__)


def score(
    rewards: Sequence[Reward], images: Tensor, pairs: Sequence[Pair], *, batch_size: int = 64
) -> dict[str, Tensor]:
    """Scores of every judge by its name, float32 (B,), on the CPU.

    Judges get at most `batch_size` pictures at a time. `images` is (B, 3, H, W) in [0, 1] and
    pairs[i] what images[i] should show. A score that is not finite is missing: NaN, and a warning that
    names the judge, the pair and the picture. Raises RewardError, naming them too, where a judge fails or returns
    another number of scores; ValueError where the arguments do not fit together.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(pairs):
        raise ValueError(f"scores need images (B, 3, H, W) and B pairs, not {tuple(images.shape)} and {len(pairs)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    names = [reward.name for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"reward {name!r}: two judges have this name; give each a name of its own")
    chunks = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    # Asynchronous rewards begin first: they run while the others compute.
    order = sorted(rewards, key=lambda reward: not getattr(reward, "is_async", False))
    begun = {reward.name: [_begin(reward, images[chunk], pairs[chunk]) for chunk in chunks] for reward in order}
    return {name: torch.cat([torch.empty(0), *(scores() for scores in begun[name])]) for name in names}


def judged(reward: Reward, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Scores of one judge, float32 (B,), on the CPU, as `score` has them; raises RewardError as it does."""
    return _begin(reward, images, pairs)()


@torch.no_grad()
def _begin(reward: Reward, images: Tensor, pairs: Sequence[Pair]) -> Callable[[], Tensor]:
    """What returns the scores when called; those of a reward that is not asynchronous are there already."""
    check_needs(reward, reward.name, pairs)
    with _errors_of(reward, pairs):
        if isinstance(reward, CallableReward):
            scores = reward.begin(images, pairs)
        else:
            scores = partial(_same, reward(images, pairs))

    def finish() -> Tensor:
        with _errors_of(reward, pairs):
            made = scores()
        return _checked(made, reward, pairs)

    return finish


def _same(scores: Tensor) -> Tensor:
    return scores


@contextmanager
def _errors_of(reward: Reward, pairs: Sequence[Pair]) -> Iterator[None]:
    """Have every error inside be a RewardError that names the reward and the pairs."""
    try:
        yield
    except RewardError as error:
        if str(error).startswith(f"reward {reward.name!r}"):
            raise  # it says all there is to say
        raise RewardError(f"reward {reward.name!r}: {error}") from error
    except (Exception, SystemExit) as error:  # sys.exit(0) in a reward would pass for success
        raise RewardError(f"reward {reward.name!r} failed on {_keys(pairs)}: {told(error)}") from error


def _checked(scores: object, reward: Reward, pairs: Sequence[Pair]) -> Tensor:
    """The scores of a call, one for each pair, NaN where one is not finite. Raises RewardError for other shapes."""
    if not isinstance(scores, Tensor) or scores.shape != (len(pairs),):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise RewardError(
            f"reward {reward.name!r} returned {found} on {_keys(pairs)}; "
            "it must return one score per image, "
            f"here a tensor of shape ({len(pairs)},)"
        )
    scores = scores.detach().to("cpu", torch.float32)
    missing = ~scores.isfinite()
    if bool(missing.any()):
        rows = missing.nonzero().flatten().tolist()
        _LOG.warning(
            "reward %r returned %s on %s (%s of %d); %s",
            *(reward.name, float(scores[rows[0]]), _keys([pairs[i] for i in rows]), _numbers(rows), len(scores)),
            "it counts as not scored" if len(rows) == 1 else f"{len(rows)} pictures count as not scored",
        )
    return scores.masked_fill(missing, torch.nan)


def _numbers(rows: Sequence[int]) -> str:
    """Pictures by their numbers among those that were given, from 1."""
    more = ", ..." if len(rows) > 8 else ""
    return f"picture{'s' if len(rows) > 1 else ''} {', '.join(str(row + 1) for row in rows[:8])}{more}"


def _keys(pairs: Sequence[Pair]) -> str:
    keys = list(dict.fromkeys(pair.key for pair in pairs))
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"pair{'s' if len(keys) > 1 else ''} {', '.join(repr(key) for key in keys[:3])}{more}"
