"""A whole iteration of a recipe in three ways: ours, diffusers' and peft's own layers, the released shape."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.context import ROOT, Context
from benchmarks.gpu.planned import difference, phase_bytes
from benchmarks.gpu.sections import Row
from benchmarks.gpu.timing import peak_bytes, reset_peak, synchronise
from benchmarks.iteration.iteration import OURS, RELEASED, Shape, iterate
from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.protocols import Pair, Policy, Reward
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.update import trained_count
from customized_grpo.trainer.windows import stochastic_steps

#: Each way by name, with the images of its group.
_WAYS = (
    ("ours", OURS, 8),
    ("diffusers + peft", Shape("diffusers + peft", own_layers=False), 8),
    ("released shape", RELEASED, 2),
)
_STEPS = 4
#: Stages of `iterate` by the phase of `cgrpo plan` that they are.
_PHASES = {
    "encode": "encoding", "sample": "sampling", "decode": "scoring", "score": "scoring", "update": "training",
    "probe": "training",
}  # fmt: skip
_FORMULA = "pairs * encode + images * (steps * sample + trained_steps * update + decode + score) + probe"


def kontext(context: Context) -> Iterator[Row]:
    yield from _iterations(context, "kontext-dev.yaml")


def paper(context: Context) -> Iterator[Row]:
    yield from _iterations(context, "paper.yaml")


def run_iteration(
    config: Config, policy: Policy, rewards: Sequence[Reward], pairs: Sequence[Pair], shape: Shape
) -> _Stages:
    """One iteration on `pairs` in that shape; it changes the policy. All that this package asks of the trainer."""
    stages = _Stages(policy.device)
    terms = [
        RewardTerm(reward, one.role, one.weight, one.limit) for reward, one in zip(rewards, config.rewards, strict=True)
    ]
    iterate(config, policy, terms, pairs, shape, stages)
    return stages


@dataclass
class _Stages:
    """Seconds (`totals`) and peak bytes of each stage, as a trainer's profiler."""

    device: torch.device
    totals: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        reset_peak(self.device)
        began = time.perf_counter()
        yield
        synchronise(self.device)
        self.totals[stage] = self.totals.get(stage, 0.0) + time.perf_counter() - began
        peak = peak_bytes(self.device)
        self.peaks[stage] = peak if peak is None else max(peak, self.peaks.get(stage) or 0)


def _iterations(context: Context, recipe: str) -> Iterator[Row]:
    whole = load_config(ROOT / "recipes" / recipe)
    lora = whole.policy.lora
    assert lora is not None and lora.targets is None
    policy_config = context.policy_config(
        rank=lora.rank, layers="default", kind=whole.policy.kind,
        gradient_checkpointing=whole.policy.gradient_checkpointing, guidance=whole.policy.guidance,
    )  # fmt: skip
    policy = context.policy(policy_config)
    configs = context.reward_configs(whole.rewards)
    rewards = context.rewards(whole.rewards)
    scaled = whole.model_copy(update={"policy": policy_config, "rewards": configs})
    pairs = context.pairs(1)
    for _, shape, _ in _WAYS[:2]:
        run_iteration(_scaled(scaled, 2, least=True), policy, rewards, pairs, shape)  # warms up
    ours: Row = {}
    for way, shape, images in _WAYS:
        context.tidy()
        config = _scaled(scaled, min(images, 2) if context.tiny else images)
        row = context.attempt({"way": way}, partial(_measure, config, whole, policy, rewards, pairs, shape))
        ours = ours or row
        if "failed" not in row and "failed" not in ours:
            row["speed_up"] = row["recipe_seconds"] / ours["recipe_seconds"]
        yield {"recipe": recipe, "formula": _FORMULA, **row}


def _scaled(config: Config, images: int, *, least: bool = False) -> Config:
    """The same settings with one pair, so many images, and no more steps than its stochastic ones need."""
    rollout = config.rollout
    steps = 1 + rollout.window.size if rollout.window is not None else 2 if least else _STEPS
    fewer = {"pairs": 1, "group_size": images, "steps": steps, "shared_noise": False}
    return config.model_copy(
        update={
            "rollout": rollout.model_copy(update=fewer),
            "train": config.train.model_copy(update={"updates": 1, "iterations": 1}),
        }
    )


def _measure(
    config: Config, whole: Config, policy: Policy, rewards: Sequence[Reward], pairs: Sequence[Pair], shape: Shape
) -> Row:
    stages = run_iteration(config, policy, rewards, pairs, shape)
    images, steps, trained = config.rollout.group_size, config.rollout.steps, _trained(config)
    encoded = images if shape.encode_each else 1
    units = {"encode": encoded, "sample": images * steps, "decode": images, "score": images, "update": images * trained}
    units["probe"] = 1
    unit = {stage: seconds / units[stage] for stage, seconds in stages.totals.items()}
    all_images = whole.rollout.pairs * whole.rollout.group_size
    recipe_seconds = (
        (all_images if shape.encode_each else whole.rollout.pairs) * unit["encode"]
        + all_images
        * (whole.rollout.steps * unit["sample"] + _trained(whole) * unit["update"] + unit["decode"] + unit["score"])
        + unit["probe"]
    )
    used = shape.of(config)
    row: Row = {
        "images": images,
        "steps": steps,
        "trained_steps": trained,
        "batch_sizes": f"{used.rollout.batch_size}, {used.train.batch_size}",
        "seconds": sum(stages.totals.values()),
        "seconds_per_image": sum(stages.totals.values()) / images,
        "stages": stages.totals,
        "seconds_per_unit": unit,
        "recipe_images": all_images,
        "recipe_steps": whole.rollout.steps,
        "recipe_trained_steps": _trained(whole),
        "recipe_seconds": recipe_seconds,
    }
    return row | _memory(config, shape, stages)


def _memory(config: Config, shape: Shape, stages: _Stages) -> Row:
    """Peaks by phase, beside `cgrpo plan`'s for our own layers."""
    measured: dict[str, Any] = {}
    for stage, phase in _PHASES.items():
        found = stages.peaks[stage]
        measured[phase] = None if found is None else max(found, measured.get(phase) or 0)
    highest = max((found for found in measured.values() if found is not None), default=None)
    row: Row = {
        "phases_gb": {phase: None if found is None else found / 1e9 for phase, found in measured.items()},
        "peak_gb": None if highest is None else highest / 1e9,
    }
    if shape is OURS:
        planned = phase_bytes(config)
        row |= {
            "planned_phases_gb": {phase: found / 1e9 for phase, found in planned.items()},
            "planned_gb": max(planned.values()) / 1e9,
            "plan_difference": difference(max(planned.values()), highest),
        }
    return row


def _trained(config: Config) -> int:
    """Trained steps of each image."""
    stochastic = len(stochastic_steps(config.rollout, config.seed, 0))
    return trained_count(stochastic, config.train.trained_fraction)
