"""Prompts that the policy or a reward would cut are counted before anything is sampled."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from embedded import embedded

from customized_grpo.config import ConfigError, DataConfig, PolicyConfig, RewardConfig
from customized_grpo.policies import build_policy
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.prompts import check_prompts, cut_prompts

SHORT, LONG = "a dog in the snow", " ".join(["a dog in the snow"] * 48)


def pairs(*prompts: str) -> Any:
    """A dataset of which only the prompts may be read."""
    return SimpleNamespace(prompts=prompts)


@pytest.fixture(scope="module")
def models() -> tuple[Any, RewardTerm]:
    policy = build_policy(embedded(PolicyConfig, device="cpu"))
    clip = build_reward(RewardConfig(kind="clip", role="prompt", name="prompt", path="embedded/reward-prompt"), "cpu")
    return policy, RewardTerm(clip, "prompt")


def test_one_line_for_each_model_that_cuts(models: tuple[Any, RewardTerm], caplog: pytest.LogCaptureFixture) -> None:
    policy, term = models
    config = DataConfig(path="pairs.jsonl")
    check_prompts("data", config, pairs(SHORT, SHORT, SHORT), policy, [term], log=True)
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        check_prompts("data", config, pairs(SHORT, LONG, LONG), policy, [term], log=True)
    first, second = caplog.messages
    assert first.startswith("data: the policy's text encoder reads 24 tokens and ignores the rest of 2 of 3 prompts")
    assert first.endswith("shorten them, or raise policy.max_sequence_length")
    assert "data: reward 'prompt' reads" in second and second.endswith("such as vlm or hps-v3")
    check_prompts("data", config, pairs(LONG), policy, [term], log=False)
    assert len(caplog.messages) == 2
    strict = config.model_copy(update={"long_prompts": "error"})
    with pytest.raises(ConfigError) as raised:
        check_prompts("evaluation.data", strict, pairs(SHORT, LONG), policy, [term], log=True)
    assert len(raised.value.problems) == 2 and all("evaluation.data: " in line for line in raised.value.problems)


def test_the_count_is_that_of_the_tokens_that_are_cut(models: tuple[Any, RewardTerm]) -> None:
    policy, _ = models
    (short, longest), limit = policy.prompt_tokens([SHORT, LONG])
    assert short < limit < longest and limit == policy.config.max_sequence_length
    assert cut_prompts([SHORT], "it", policy) == ""
    assert f"(the longest has {longest})" in cut_prompts([LONG], "it", policy)
    assert cut_prompts([LONG], "it", object()) == "", "a model that does not count"


def test_libraries_do_not_warn_at_each_encoding(
    models: tuple[Any, RewardTerm], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = models
    for name in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with caplog.at_level(logging.DEBUG):
        policy.encode(LONG, [])
    assert not [message for message in caplog.messages if "truncated" in message or "longer than" in message]
