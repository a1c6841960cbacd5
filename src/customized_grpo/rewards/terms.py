"""Rewards of a training run, each with its role and weight."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeGuard, get_args

from customized_grpo.protocols import ROLES, Pair, Reward
from customized_grpo.rewards.base import check_needs
from customized_grpo.rewards.callables import CallableReward, as_reward
from customized_grpo.rewards.errors import RewardError, did_you_mean

TermRole = Literal["identity", "prompt", "guard"]
TERM_ROLES: tuple[TermRole, ...] = get_args(TermRole)


@dataclass(frozen=True)
class RewardTerm:
    """A reward with its role and weight in training.

    Attributes:
        reward: A reward model, or any callable that `as_reward` accepts.
        role: identity or prompt; or guard, which is not trained on: images that it scores above `limit` drop out of
            their groups.
        weight: Weight within the role. With 0 the reward is logged but not trained on.
        limit: Highest score that a guard lets pass. Only for guards.

    Raises:
        RewardError: A value is out of its range, or the reward is made for another role.
    """

    reward: Reward
    role: TermRole
    weight: float = 1.0
    limit: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", as_reward(self.reward))
        if self.role not in TERM_ROLES:
            roles = did_you_mean(str(self.role), TERM_ROLES, f"give one of {', '.join(TERM_ROLES)}")
            raise RewardError(f"reward {self.name!r}: unknown role {self.role!r}; {roles}")
        own = getattr(self.reward, "role", self.role)
        if own != self.role:
            raise RewardError(
                f"reward {self.name!r} is made for the role {own}, not {self.role}; change one of the two"
            )
        if not _is_number(self.weight) or self.weight < 0:
            raise RewardError(f"reward {self.name!r}: weight is {self.weight!r}; give a number of at least 0")
        if self.limit is None:
            return
        if self.role != "guard":
            raise RewardError(f"reward {self.name!r} has a limit, which only guards have; remove it")
        if not _is_number(self.limit):
            raise RewardError(f"reward {self.name!r}: limit is {self.limit!r}; give a number")

    @property
    def name(self) -> str:
        """Name in logs, tables and figures."""
        return self.reward.name

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise RewardError if these pairs lack what the reward needs; load models that only they need."""
        check_needs(self.reward, self.name, pairs)
        if (prepare := getattr(self.reward, "prepare", None)) is not None:
            prepare(pairs)
        if isinstance(self.reward, CallableReward):
            self.reward.check(pairs)


def terms_from(rewards: Mapping[str, object | Sequence[object]]) -> list[RewardTerm]:
    """Return the terms of a training run.

    Args:
        rewards: For each role, identity, prompt or guard, a reward or a list of them. An entry is a reward model, any
            callable (see `as_reward`), a `RewardTerm`, or a tuple (reward, weight). For a guard, the number in the
            tuple is its limit.

    Raises:
        RewardError: An entry cannot be used, two rewards have one name, a guard has no limit, or identity or prompt
            has no reward with a weight above 0.
    """
    terms = monitors_from(rewards)
    for term in terms:
        if term.role == "guard" and term.limit is None:
            raise RewardError(f"reward {term.name!r} is a guard; give it a limit: ({term.name}, limit)")
    for role in ROLES:
        if not any(term.role == role and term.weight > 0 for term in terms):
            raise RewardError(f"no reward has the role {role} and a weight above 0; add one: {{{role!r}: [...]}}")
    return terms


def monitors_from(monitors: Mapping[str, object | Sequence[object]]) -> list[RewardTerm]:
    """Return the terms of rewards that only score evaluations; as `terms_from`, but no role is required."""
    if not isinstance(monitors, Mapping):
        given = type(monitors).__name__
        raise RewardError(f"rewards is a {given}; give a dict: {{'identity': [...], 'prompt': [...]}}")
    terms = [_term(entry, role) for role, value in monitors.items() for entry in _entries(value)]
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"two rewards are named {name!r}; give one another name: as_reward(reward, name=...)")
    return terms


def _entries(value: object) -> Iterator[object]:
    if isinstance(value, list) or (isinstance(value, tuple) and not _is_pair(value)):
        yield from value
    else:
        yield value


def _term(entry: Any, role: Any) -> RewardTerm:
    if isinstance(entry, RewardTerm):
        if entry.role != role:
            raise RewardError(f"reward {entry.name!r} has the role {entry.role}, but is listed under {role}; move it")
        return entry
    if _is_pair(entry):
        reward, number = entry
        given = {"limit": number} if role == "guard" else {"weight": number}
        return RewardTerm(reward, role, **given)
    return RewardTerm(entry, role)


def _is_pair(value: object) -> TypeGuard[tuple[Reward, float]]:
    """Report whether it is (reward, number), not a tuple of rewards."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Real)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
