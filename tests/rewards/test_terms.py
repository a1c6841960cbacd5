"""Rewards with their roles and weights: all forms of an entry, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from customized_grpo.protocols import Pair
from customized_grpo.rewards import CopyPaste, RewardError, RewardTerm, as_reward, terms_from


def one(images: Tensor) -> list[float]:
    return [1.0] * len(images)


def two(images: Tensor) -> list[float]:
    return [2.0] * len(images)


def three(images: Tensor) -> list[float]:
    return [3.0] * len(images)


def four(images: Tensor) -> list[float]:
    return [4.0] * len(images)


def shown(terms: list[RewardTerm]) -> list[tuple[str, str, float, float | None]]:
    return [(term.name, term.role, term.weight, term.limit) for term in terms]


def test_all_forms_of_an_entry() -> None:
    own = as_reward(two)
    terms = terms_from({"identity": [one, (own, 0.5)], "prompt": three, "guard": (four, 90)})
    assert shown(terms) == [
        ("one", "identity", 1.0, None),
        ("two", "identity", 0.5, None),
        ("three", "prompt", 1.0, None),
        ("four", "guard", 1.0, 90),
    ]
    assert terms[1].reward is own
    guard = RewardTerm(four, "guard", limit=0.0)
    assert terms_from({"prompt": (one, two), "identity": [(three, 2)], "guard": [guard]})[-1] is guard
    assert shown(terms_from({"identity": [one], "prompt": [(two, 1), (three, 0)]}))[-1] == ("three", "prompt", 0, None)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([one, two], r"rewards is a list; give a dict: \{'identity': \[\.\.\.\], 'prompt': \[\.\.\.\]\}"),
        ({"identity": one, "promt": two}, "unknown role 'promt'; did you mean 'prompt'"),
        ({"identity": one, "style": two}, "unknown role 'style'; give identity, prompt, guard"),
        ({"identity": [one, two]}, "no reward has the role prompt and a weight above 0; add one"),
        ({"identity": [], "prompt": one}, "no reward has the role identity"),
        ({"identity": (one, 0), "prompt": two}, "no reward has the role identity and a weight above 0"),
        ({"identity": one, "prompt": one}, r"two rewards are named 'one'; .* as_reward\(reward, name=\.\.\.\)"),
        ({"identity": one, "prompt": two, "guard": three}, "reward 'three' is a guard; give it a limit"),
        ({"identity": (one, -1), "prompt": two}, "reward 'one': weight is -1; give a number of at least 0"),
        ({"identity": (one, True), "prompt": two}, "reward 'one': weight is True"),
        ({"identity": (one, float("nan")), "prompt": two}, "reward 'one': weight is nan"),
        (
            {"identity": RewardTerm(one, "prompt"), "prompt": two},
            "'one' has the role prompt, but is listed under identity",
        ),
        ({"identity": "dino", "prompt": two}, "'dino' is no reward"),
        ({"identity": None, "prompt": two}, "None is no reward"),
    ],
)
def test_what_is_refused_in_one_line(rewards: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        terms_from(rewards)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"role": "style"}, "unknown role 'style'; give one of identity, prompt, guard"),
        ({"role": "prompt", "limit": 1.0}, "has a limit, which only guards have; remove it"),
        ({"role": "guard", "limit": float("inf")}, "limit is inf; give a number"),
        ({"role": "prompt", "weight": "1"}, "weight is '1'"),
    ],
)
def test_a_term_checks_its_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'one'.* {message}"):
        RewardTerm(one, **values)  # type: ignore[arg-type]


def test_a_reward_of_one_role_is_not_used_in_another() -> None:
    reward = as_reward(one)
    reward.role = "prompt"  # type: ignore[attr-defined]
    assert RewardTerm(reward, "prompt").name == "one"
    with pytest.raises(RewardError, match="reward 'one' is made for the role prompt, not identity"):
        RewardTerm(reward, "identity")


def test_pairs_are_checked_before_anything_is_scored(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair("a")

    def needing(images: Tensor, target: list[str]) -> list[float]:
        raise AssertionError("nothing is scored")

    term = RewardTerm(needing, "prompt")
    term.check([replace(pair, columns={"target": "x"})])
    with pytest.raises(RewardError, match="reward 'needing': no value for its parameter 'target'"):
        term.check([pair])
    with pytest.raises(RewardError, match="needs a reference, and pair 'a' has none"):
        RewardTerm(CopyPaste(), "guard", limit=90).check([replace(pair, references=(), masks=())])
