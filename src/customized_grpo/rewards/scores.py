"""Scores of several judges over one set of pictures, checked before anything is learnt from
them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customized_grpo.named import told
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards.errors import RewardError


@torch.no_grad()
def score(
    rewards: Sequence[Reward], images: Tensor, pairs: Sequence[Pair], *, batch_size: int = 64
) -> dict[str, Tensor]:
    """Scores of every judge by its name, float32 (B,), on the CPU.

    Judges get at most `batch_size` pictures at a time. `images` is (B, 3, H, W) in [0, 1] and
    pairs[i] what images[i] should show. Raises RewardError, naming the judge and the pair, where a
    judge fails or returns another number of scores or one that is not finite; ValueError where the
    arguments do not fit together.
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
    return {
        reward.name: torch.cat([torch.empty(0), *(_checked(reward, images[c], pairs[c]) for c in chunks)])
        for reward in rewards
    }


def _checked(reward: Reward, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    try:
        scores = reward(images, pairs)
    except Exception as error:
        raise RewardError(f"reward {reward.name!r} failed on {_keys(pairs)}: {told(error)}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(images),):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise RewardError(
            f"reward {reward.name!r} returned {found} on {_keys(pairs)}; "
            "it must return one score per image, "
            f"here a tensor of shape ({len(images)},)"
        )
    scores = scores.detach().to("cpu", torch.float32)
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).nonzero()[0])
        raise RewardError(
            f"reward {reward.name!r} returned {float(scores[bad])} on "
            f"{_keys(pairs[bad : bad + 1])}; "
            "scores must be finite, so return a number for every picture"
        )
    return scores


def _keys(pairs: Sequence[Pair]) -> str:
    keys = list(dict.fromkeys(pair.key for pair in pairs))
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"pair{'s' if len(keys) > 1 else ''} {', '.join(repr(key) for key in keys[:3])}{more}"
