"""Settings with which a run fits into memory."""

from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from typing import Any

from customized_grpo.config import Config, PolicyConfig
from customized_grpo.planning.models import scorer_path
from customized_grpo.planning.plan import make_plan

_LEAST_RANK = 8
_LEAST_SIDE = 128
_SIDES = 16  # sides of images stay multiples of this

#: New values by dotted key, of settings that change together.
Change = dict[str, Any]


def nearest_that_fits(
    config: Config, memory: int, *, processes: int = 1, references: int = 1, accelerator: bool = True
) -> Change | None:
    """Return the fewest settings to change so that the run fits into `memory` bytes, least harm first; None if none do.

    The order: smaller batches, checkpointing and offloading, reward models on the CPU, which cost time alone; a
    quantised base; a LoRA, or one of lower rank; activations in host memory; smaller images.
    """

    def fits(changes: list[Change]) -> bool:
        plan = make_plan(changed(config, *changes), processes=processes, references=references, accelerator=accelerator)
        return plan.needed <= memory

    made: list[Change] = []
    for change in _remedies(config):
        made = [*[one for one in made if one.keys() != change.keys()], change]
        if fits(made):
            return {key: value for one in _needed(made, fits) for key, value in one.items()}
    return None


def _needed(made: list[Change], fits: Callable[[list[Change]], bool]) -> list[Change]:
    """Drop changes that others have made needless."""
    for change in made:
        without = [one for one in made if one is not change]
        if fits(without):
            return _needed(without, fits)
    return made


def changed(config: Config, *changes: Change) -> Config:
    """Return the configuration with other values at dotted keys."""
    values: Any = config.model_dump()
    for change in changes:
        for key, value in change.items():
            *sections, name = (int(part) if part.isdecimal() else part for part in key.split("."))
            reduce(getitem, sections, values)[name] = value
    return Config.model_validate(values)


def _remedies(config: Config) -> Iterator[Change]:
    policy = config.policy
    for key, size in (("train.batch_size", config.train.batch_size), ("rollout.batch_size", config.rollout.batch_size)):
        while size != "auto" and size > 1:
            size //= 2
            yield {key: size}
    for name in ("gradient_checkpointing", "offload"):
        if not getattr(policy, name):
            yield {f"policy.{name}": True}
    lists = (("rewards", config.rewards), ("evaluation.monitors", config.evaluation.monitors))
    scorers = [(f"{place}.{i}.device", one) for place, rewards in lists for i, one in enumerate(rewards)]
    beside = [key for key, one in scorers if one.device in (None, policy.device) and scorer_path(one) is not None]
    if beside:
        yield dict.fromkeys(beside, "cpu")
    if policy.lora is None:
        yield {"policy.lora": {"rank": 16}}
    for name in ("quantise", "quantise_text_encoders"):
        schemes = {None: ("int8", "nf4"), "int8": ("nf4",), "nf4": ()}[getattr(policy, name)]
        yield from ({f"policy.{name}": scheme} for scheme in schemes)
    rank = 0 if policy.lora is None else policy.lora.rank // 2
    while rank >= _LEAST_RANK:
        yield {"policy.lora.rank": rank}
        rank //= 2
    if not policy.offload_activations:
        needs = {} if policy.gradient_checkpointing else {"policy.gradient_checkpointing": True}
        yield {**needs, "policy.offload_activations": True}
    for share in (0.75, 0.5, 0.25):
        yield from _smaller(policy, share)


def _smaller(policy: PolicyConfig, share: float) -> Iterator[Change]:
    """Yield images and references of that share of their sides, unless they would be too small to be of use."""

    def side(length: int) -> int:
        return int(share * length) // _SIDES * _SIDES

    change: Change = {"policy.height": side(policy.height), "policy.width": side(policy.width)}
    lengths = list(change.values())
    for name in ("sizes", "reference_sizes"):
        if (sizes := getattr(policy, name)) is not None:
            change[f"policy.{name}"] = [list(map(side, size)) for size in sizes]
            lengths += [length for size in change[f"policy.{name}"] for length in size]
    if min(lengths) >= _LEAST_SIDE:
        yield change
