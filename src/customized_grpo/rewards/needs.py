"""What a reward looks at beside the picture, as far as it says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.errors import RewardError

#: For the message: what the pairs' owner can do.
_REMEDIES: dict[Need, str] = {
    "prompt": "give one",
    "reference": "give a photo of the subject",
    "mask": "give one with each reference",
}


def needs_of(reward: object, name: str) -> frozenset[Need] | None:
    """The attribute `needs` of a reward; None where it has none, and may look at anything. Raises RewardError."""
    declared = getattr(reward, "needs", None)
    if declared is None:
        return None
    known = get_args(Need)
    if isinstance(declared, str) or not all(one in known for one in declared):
        raise RewardError(f"reward {name!r}: needs is {declared!r}; give a tuple of {', '.join(map(repr, known))}")
    return frozenset(declared)


def check_needs(reward: object, name: str, pairs: Sequence[Pair]) -> None:
    """Raises RewardError, naming reward and pair, where a pair lacks what the reward says that it needs."""
    for need in sorted(needs_of(reward, name) or ()):
        lacking = next((pair for pair in pairs if not _has(pair, need)), None)
        if lacking is not None:
            raise RewardError(f"reward {name!r} needs a {need}, and pair {lacking.key!r} has none; {_REMEDIES[need]}")


def _has(pair: Pair, need: Need) -> bool:
    if need == "prompt":
        return bool(pair.prompt.strip())
    if need == "reference":
        return bool(pair.references)
    return bool(pair.masks) and None not in pair.masks
