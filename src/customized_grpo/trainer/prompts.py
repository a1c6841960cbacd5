"""Prompts that are longer than a model reads, found before anything is sampled."""

import logging
from collections.abc import Iterable, Sequence

from customized_grpo.config import ConfigError, DataConfig
from customized_grpo.data import WORLDS, prompts_of
from customized_grpo.protocols import PairDataset
from customized_grpo.rewards.terms import RewardTerm

_LOG = logging.getLogger(__name__)


def check_prompts(
    section: str, config: DataConfig, dataset: PairDataset, policy: object, terms: Iterable[RewardTerm], *, log: bool
) -> None:
    """Warn of prompts that the policy or a reward cuts: how many, the longest, and which model.

    Models that have a method `prompt_tokens` are checked, see `protocols`. Prompts of the built-in world are short.
    `section` names the settings, for messages. Raises ConfigError, one line for each model, if `long_prompts` is error.
    """
    prompts = () if config.path in WORLDS else prompts_of(dataset)
    longer = "shorten them, or use a reward with a longer context, such as vlm or hps-v3"
    readers = [("the policy's text encoder", policy, "shorten them, or raise policy.max_sequence_length")]
    readers += [(f"reward {term.name!r}", term.reward, longer) for term in terms]
    found = [(cut_prompts(prompts, who, model), remedy) for who, model, remedy in readers]
    problems = [f"{section}: {line}; {remedy}" for line, remedy in found if line]
    if problems and config.long_prompts == "error":
        raise ConfigError(*problems)
    for problem in problems if log else ():
        _LOG.warning("%s", problem)


def cut_prompts(prompts: Sequence[str], who: str, model: object) -> str:
    """Return a line about the prompts that a model cuts; "" if there are none or the model does not count tokens."""
    count = getattr(model, "prompt_tokens", None)
    found = count(prompts) if count is not None and any(prompts) else None
    if found is None:
        return ""
    lengths, limit = found
    if not (cut := sum(length > limit for length in lengths)):
        return ""
    which = "the prompt" if len(prompts) == 1 else f"{cut} of {len(prompts)} prompts"
    return f"{who} reads {limit} tokens and ignores the rest of {which} (the longest has {max(lengths)})"
