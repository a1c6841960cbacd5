"""The plan of a run, from its configuration alone: what it is and takes, and what to change where it cannot fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from customized_grpo.config import Config, PolicyConfig, RewardConfig
from customized_grpo.planning.judges import Judge, judges_of, model_of
from customized_grpo.planning.memory import Weights, Work, device_memory, host_memory, with_overhead
from customized_grpo.planning.shapes import Shapes, shapes_of
from customized_grpo.trainer.conditioning import conditions_cached
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.update import trained_count
from customized_grpo.trainer.windows import stochastic_steps
from customized_grpo.utils.hub import local_path, resolve

_LEAST_RANK = 8
_WAITING = ("policy.gradient_checkpointing", "policy.offload_activations")  # the second needs the first
_LEAST_SIDE = 128
_SIDES = 16  # of which pictures' sides stay multiples

Change = tuple[str, Any, Any]
"""A setting, its value, and the value to give it. Settings that change together are one, names and values in a row."""


@dataclass(frozen=True)
class Download:
    """Files of a hub model that are not here: which, and about how many bytes (None: unknown)."""

    path: str
    files: str
    bytes: int | None


@dataclass(frozen=True)
class Plan:
    """What a run takes, for each of `processes`. Bytes by part; `device` by phase, too."""

    processes: int
    parameters: dict[str, int]
    trainable: int
    device: dict[str, dict[str, int]]
    host: dict[str, int]
    needed: int
    images: int
    sampling_evaluations: int  #: at most: what a group shares before its window is drawn once
    training_evaluations: int
    downloads: list[Download]
    uncounted: list[str]  #: models whose memory is not known, in words

    @property
    def peak_phase(self) -> str:
        return max(self.device, key=lambda phase: sum(self.device[phase].values()))


def make_plan(config: Config, *, processes: int = 1, references: int = 1, accelerator: bool = True) -> Plan:
    """The plan of a configuration, for pairs of so many references; weights are neither loaded nor fetched.

    Raises:
        ConfigError, ModelError: a model that cannot be outlined from its configs.
    """
    shapes = shapes_of(config.policy, references)
    judges, uncounted = judges_of(_judges(config), shapes.pixels)
    beside = {reward_name(one) for one in _judges(config) if _beside_policy(one, config.policy)}
    there = [judge for name, judge in judges.items() if name in beside]
    width = getattr(torch, config.policy.dtype).itemsize
    work = _work(config, shapes, processes)
    policy = config.policy
    encoders = sum(model.bytes(width, policy.quantise_text_encoders) for model in shapes.text_encoders.values())
    weights = Weights(
        transformer=shapes.transformer.bytes(width, policy.quantise),
        published=shapes.transformer.bytes(width),
        text_encoders=encoders,
        vae=shapes.vae.bytes(width),
        rewards=sum(judge.bytes for judge in there),
        trained=shapes.trained_bytes,
        trained_tensors=shapes.trained_tensors,
        full=policy.lora is None,
        restored=policy.lora is None or (policy.adapter is not None and policy.adapter_as == "start"),
        offload=policy.offload,
        forgetful=policy.offload and policy.conditions is not None,
        dequantised=shapes.largest_linear * width if policy.quantise else 0,
        ema=config.train.ema > 0,
    )
    looking = max((judge.activations * min(judge.batch, work.images) for judge in there), default=0)
    device = device_memory(weights, work, replace(shapes.activations, rewards=looking))
    peak = max(sum(parts.values()) for parts in device.values())
    images = config.rollout.pairs * config.rollout.group_size
    passes = 1 if policy.true_cfg == 1 else 2
    return Plan(
        processes=processes,
        parameters={
            "transformer": shapes.transformer.parameters,
            **{name: model.parameters for name, model in shapes.text_encoders.items()},
            "vae": shapes.vae.parameters,
            **{f"{name}: {judge.path}": judge.model.parameters for name, judge in judges.items()},
        },
        trainable=shapes.trained,
        device=device,
        host=host_memory(weights, work.training_batch * shapes.activations.waiting) if accelerator else {},
        needed=with_overhead(peak, accelerator),
        images=images,
        sampling_evaluations=images * config.rollout.steps * passes,
        training_evaluations=images * work.trained * passes,
        downloads=list(_downloads(config, shapes, judges, width)),
        uncounted=uncounted,
    )


def nearest_that_fits(
    config: Config, memory: int, *, processes: int = 1, references: int = 1, accelerator: bool = True
) -> list[Change] | None:
    """The fewest settings to change so that the run fits into `memory` bytes, least harm first; None: none will do.

    In this order: smaller batches, which cost speed alone; gradient checkpointing, offloading and judges on the CPU,
    likewise; a quantised base, which draws a little differently; a LoRA where all weights were tuned, or one of a lower
    rank; activations in host memory, which takes time; smaller pictures.
    """

    def fits(changes: list[Change]) -> bool:
        changed = _changed(config, changes)
        plan = make_plan(changed, processes=processes, references=references, accelerator=accelerator)
        return plan.needed <= memory

    made: list[Change] = []
    for change in _remedies(config):
        made = [*[one for one in made if one[0] != change[0]], change]
        if fits(made):
            break
    else:
        return None
    made = _needed(made, fits)
    made = [_relaxed(change, made, fits) for change in made]
    return _needed(made, fits)


def _needed(made: list[Change], fits: Callable[[list[Change]], bool]) -> list[Change]:
    """Without what others have made needless."""
    for change in made:
        without = [one for one in made if one is not change]
        if fits(without):
            return _needed(without, fits)
    return made


def _relaxed(change: Change, made: list[Change], fits: Callable[[list[Change]], bool]) -> Change:
    """A batch size as large as fits, by halves of what was asked for; any other change as it is."""
    key, before, after = change
    if not key.endswith("batch_size"):
        return change
    size = before // 2
    while size > after:
        if fits([(key, before, size) if one is change else one for one in made]):
            return key, before, size
        size //= 2
    return change


def _remedies(config: Config) -> Iterator[Change]:
    policy, train, rollout = config.policy, config.train, config.rollout
    if train.batch_size != "auto" and train.batch_size > 1:
        yield "train.batch_size", train.batch_size, 1
    if rollout.batch_size != "auto" and rollout.batch_size > 1:
        yield "rollout.batch_size", rollout.batch_size, 1
    if not policy.gradient_checkpointing:
        yield "policy.gradient_checkpointing", False, True
    if not policy.offload:
        yield "policy.offload", False, True
    if (elsewhere := _judges_elsewhere(config)) is not None:
        yield elsewhere
    if policy.lora is None:
        yield "policy.lora", None, {"rank": 16}
    for scheme in ("int8", "nf4"):
        if policy.quantise != "nf4" and policy.quantise != scheme:
            yield "policy.quantise", policy.quantise, scheme
    for scheme in ("int8", "nf4"):
        if policy.quantise_text_encoders != "nf4" and policy.quantise_text_encoders != scheme:
            yield "policy.quantise_text_encoders", policy.quantise_text_encoders, scheme
    rank = 0 if policy.lora is None else policy.lora.rank // 2
    while policy.lora is not None and rank >= _LEAST_RANK:
        yield "policy.lora.rank", policy.lora.rank, rank
        rank //= 2
    if not policy.offload_activations:
        names = ["policy.offload_activations"] if policy.gradient_checkpointing else list(_WAITING)
        yield ", ".join(names), [False] * len(names), [True] * len(names)
    for share in (0.75, 0.5, 0.25):
        if (smaller := _smaller(policy, share)) is not None:
            yield smaller


def _judges(config: Config) -> list[RewardConfig]:
    return [*config.rewards, *config.evaluation.monitors]


def _beside_policy(judge: RewardConfig, policy: PolicyConfig) -> bool:
    """Whether its model is on the policy's own device."""
    return judge.device is None or judge.device == policy.device


def _judges_elsewhere(config: Config) -> Change | None:
    """All judges with models on the CPU; None where none was beside the policy."""
    keyed = {f"rewards.{i}.device": judge for i, judge in enumerate(config.rewards)}
    keyed |= {f"evaluation.monitors.{i}.device": judge for i, judge in enumerate(config.evaluation.monitors)}
    moved = [key for key, one in keyed.items() if _beside_policy(one, config.policy) and model_of(one) is not None]
    if not moved:
        return None
    return ", ".join(moved), [keyed[key].device for key in moved], ["cpu"] * len(moved)


def _smaller(policy: PolicyConfig, share: float) -> Change | None:
    """Pictures and references of that share of their sides; None where they were too small to be of use."""

    def side(length: int) -> int:
        return int(share * length) // _SIDES * _SIDES

    sides = [*(policy.reference_sizes or []), (policy.height, policy.width)]
    if min(side(length) for size in sides for length in size) < _LEAST_SIDE:
        return None
    names = ["policy.height", "policy.width"]
    before: list[Any] = [policy.height, policy.width]
    after: list[Any] = [side(policy.height), side(policy.width)]
    if policy.reference_sizes is not None:
        names.append("policy.reference_sizes")
        before.append([list(size) for size in policy.reference_sizes])
        after.append([[side(height), side(width)] for height, width in policy.reference_sizes])
    return ", ".join(names), before, after


def single(change: Change) -> list[Change]:
    """Each setting of a change by itself."""
    key, before, after = change
    names = key.split(", ")
    return list(zip(names, before, after, strict=True)) if isinstance(after, list) else [change]


def _changed(config: Config, changes: list[Change]) -> Config:
    values: Any = config.model_dump()
    for change in changes:
        for key, _, value in single(change):
            *sections, name = (int(part) if part.isdecimal() else part for part in key.split("."))
            reduce(getitem, sections, values)[name] = value
    return Config.model_validate(values)


def _work(config: Config, shapes: Shapes, processes: int) -> Work:
    rollout, train = config.rollout, config.train
    pairs = -(-rollout.pairs // processes)
    stochastic = len(stochastic_steps(rollout, config.seed, 0))
    return Work(
        pairs=pairs,
        images=pairs * rollout.group_size,
        stochastic=stochastic,
        trained=trained_count(stochastic, train.trained_fraction),
        updates=train.updates,
        latent=shapes.latent,
        condition=shapes.condition,
        pixels=shapes.pixels,
        # Sizes that follow memory go down to one item where they must.
        sampling_batch=1 if rollout.batch_size == "auto" else rollout.batch_size,
        training_batch=1 if train.batch_size == "auto" else train.batch_size,
        conditions_kept=min(conditions_cached(config), pairs * train.iterations),
        means=train.ratio == "guard",
    )


def _downloads(config: Config, shapes: Shapes, judges: dict[str, Judge], width: int) -> Iterator[Download]:
    """Weights that the hub's local copy lacks, of the pipeline and of the judges."""
    policy = config.policy
    source = resolve(policy.path)
    if isinstance(source, str):
        parts = {"transformer": shapes.transformer, **shapes.text_encoders, "vae": shapes.vae}
        # Published in bfloat16, all of them: 2 bytes a parameter, whatever policy.dtype makes of them.
        for part, model in parts.items():
            if not _here(source, policy.revision, f"{part}/*.safetensors"):
                yield Download(source, f"{part}/*.safetensors", 2 * model.parameters)
    for judge in judges.values():
        if isinstance(resolve(judge.path), str) and not _here(judge.path, None, "*.safetensors"):
            yield Download(judge.path, "*.safetensors", judge.width * judge.model.parameters)
    if policy.adapter is not None and not local_path(policy.adapter).is_file():
        yield Download(policy.adapter, "to be put there by hand", None)


def _here(repository: str, revision: str | None, pattern: str) -> bool:
    """Whether the hub's local copy has files of that pattern. Asks nothing of the hub."""
    try:
        folder = snapshot_download(repository, revision=revision, local_files_only=True)
    except Exception:  # the hub's client has several for one that is not there
        return False
    return any(Path(folder).glob(pattern))
