"""Scores of several rewards for one set of images, checked before they are used."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards.base import check_needs
from customized_grpo.rewards.callables import CallableReward
from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.isolation import isolated
from customized_grpo.utils.named import error_text

_LOG = logging.getLogger(__name__)


def score(
    rewards: Sequence[Reward],
    images: Tensor,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 64,
    seed: Sequence[int | str] = (),
) -> dict[str, Tensor]:
    """Score images by all rewards. A score that is not finite becomes NaN, with a warning.

    Each call of a reward is isolated: global random numbers are seeded by `seed`, the reward's name and the pairs, and
    what it changes in torch's settings, random states and the working directory is undone; of asynchronous rewards
    whenever they wait.

    Args:
        rewards: Rewards with distinct names.
        images: Tensor (B, 3, H, W) in [0, 1].
        pairs: The pair of each image.
        batch_size: Largest number of images that a reward gets at a time.
        seed: Key of the random numbers that a reward may use.

    Returns:
        Scores float32 (B,) on the CPU by the reward's name.

    Raises:
        RewardError: A reward fails or returns another number of scores; names reward and pairs.
        ValueError: The arguments do not fit together.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(pairs):
        raise ValueError(f"scores need images (B, 3, H, W) and B pairs, not {tuple(images.shape)} and {len(pairs)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    names = [reward.name for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"reward {name!r}: two rewards have this name; give each another name")
    chunks = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    # Asynchronous rewards begin first: they run while the others compute.
    order = sorted(rewards, key=lambda reward: not getattr(reward, "is_async", False))
    begun = {
        reward.name: [_begin(reward, images[chunk], pairs[chunk], (*seed, chunk.start)) for chunk in chunks]
        for reward in order
    }
    return {name: torch.cat([torch.empty(0), *(scores() for scores in begun[name])]) for name in names}


def checked_scores(reward: Reward, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Return the scores of one reward, float32 (B,) on the CPU. Raises RewardError as `score` does."""
    return _begin(reward, images, pairs)()


@torch.no_grad()
def _begin(
    reward: Reward, images: Tensor, pairs: Sequence[Pair], seed: Sequence[int | str] = ()
) -> Callable[[], Tensor]:
    """Call a reward and return a function that waits for its scores; only asynchronous ones are still at work."""
    check_needs(reward, reward.name, pairs)
    with _errors_of(reward, pairs), isolated(*seed, reward.name, *(pair.key for pair in pairs)):
        # Copies, since a user's own code may change them in place.
        begun = reward.begin(images.clone(), _copies(pairs)) if isinstance(reward, CallableReward) else None
        scores = reward(images, pairs) if begun is None else None

    def finish() -> Tensor:
        with _errors_of(reward, pairs):
            return _checked(scores if begun is None else begun(), reward, pairs)

    return finish


def _copies(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with images of their own."""
    own = {
        pair: replace(
            pair,
            references=tuple(image.copy() for image in pair.references),
            masks=tuple(None if mask is None else mask.copy() for mask in pair.masks),
        )
        for pair in dict.fromkeys(pairs)
    }
    return [own[pair] for pair in pairs]


@contextmanager
def _errors_of(reward: Reward, pairs: Sequence[Pair]) -> Iterator[None]:
    """Turn every error into a RewardError that names the reward and the pairs."""
    try:
        yield
    except RewardError as error:
        if str(error).startswith(f"reward {reward.name!r}"):
            raise
        raise RewardError(f"reward {reward.name!r}: {error}") from error
    except BaseException as error:  # sys.exit(0) in a reward would pass for success
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, which no other thread gets
        raise RewardError(f"reward {reward.name!r} failed on {_keys(pairs)}: {error_text(error)}") from error


def _checked(scores: object, reward: Reward, pairs: Sequence[Pair]) -> Tensor:
    """Return the scores, NaN for those that are not finite. Raises RewardError for another shape than (B,)."""
    if not isinstance(scores, Tensor) or scores.shape != (len(pairs),):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise RewardError(
            f"reward {reward.name!r} returned {found} on {_keys(pairs)}; it must return one score per image, here a "
            f"tensor of shape ({len(pairs)},)"
        )
    scores = scores.detach().to("cpu", torch.float32)
    missing = ~scores.isfinite()
    if bool(missing.any()):
        rows = missing.nonzero().flatten().tolist()
        shown = ", ".join(str(row + 1) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
        _LOG.warning(
            "reward %r returned %s for image%s %s of %d, %s; the score counts as missing",
            *(reward.name, float(scores[rows[0]]), "s" if len(rows) > 1 else "", shown, len(scores)),
            _keys([pairs[i] for i in rows]),
        )
    return scores.masked_fill(missing, torch.nan)


def _keys(pairs: Sequence[Pair]) -> str:
    keys = list(dict.fromkeys(pair.key for pair in pairs))
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"pair{'s' if len(keys) > 1 else ''} {', '.join(repr(key) for key in keys[:3])}{more}"
