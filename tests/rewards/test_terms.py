"""Rewards with their roles and weights: all forms of an entry, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from customized_grpo.rewards import RewardError, RewardTerm, as_reward, terms_from


def one(images: Tensor) -> list[float]:
    return [1.0] * len(images)


two, three, four = (as_reward(one, name=name) for name in ("two", "three", "four"))


def shown(terms: list[RewardTerm]) -> list[tuple[str, str, float, float | None]]:
    return [(term.name, term.role, term.weight, term.limit) for term in terms]


def test_all_forms_of_an_entry() -> None:
    terms = terms_from({"identity": [one, (two, 0.5)], "prompt": three, "guard": (four, 90)})
    assert shown(terms) == [
        ("one", "identity", 1.0, None),
        ("two", "identity", 0.5, None),
        ("three", "prompt", 1.0, None),
        ("four", "guard", 1.0, 90),
    ]
    assert terms[1].reward is two
    guard = RewardTerm(four, "guard", limit=0.0)
    assert terms_from({"prompt": (one, two), "identity": [(three, 2)], "guard": [guard]})[-1] is guard
    assert shown(terms_from({"identity": [one], "prompt": [(two, 1), (three, 0)]}))[-1] == ("three", "prompt", 0, None)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([one, two], r"rewards is a list; give a dict: \{'identity': \[\.\.\.\], 'prompt': \[\.\.\.\]\}"),
        ({"identity": one, "promt": two}, "unknown role 'promt'; did you mean 'prompt'"),
        ({"identity": (one, 0), "prompt": two}, "no reward has the role identity and a weight above 0"),
        ({"identity": one, "prompt": one}, r"two rewards are named 'one'; .* as_reward\(reward, name=\.\.\.\)"),
        ({"identity": one, "prompt": two, "guard": three}, "reward 'three' is a guard; give it a limit"),
        ({"identity": (one, -1), "prompt": two}, "reward 'one': weight is -1; give a number of at least 0"),
        ({"identity": (one, float("nan")), "prompt": two}, "reward 'one': weight is nan"),
        (
            {"identity": RewardTerm(one, "prompt"), "prompt": two},
            "'one' has the role prompt, but is listed under identity",
        ),
        ({"identity": "dino", "prompt": two}, "'dino' is no reward"),
    ],
)
def test_what_is_refused_in_one_line(rewards: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        terms_from(rewards)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"role": "style"}, "unknown role 'style'; give one of identity, prompt, guard"),
        ({"role": "prompt", "limit": 1.0}, "has a limit, which only guards have; remove it"),
    ],
)
def test_a_term_checks_its_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'one'.* {message}"):
        RewardTerm(one, **values)  # type: ignore[arg-type]
