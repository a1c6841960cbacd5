"""Sections on whole training: an iteration of a recipe in three ways, and `cgrpo train` with no options."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from benchmarks.gpu.context import ROOT, Context
from benchmarks.gpu.model import difference
from benchmarks.gpu.timing import Row, peak_bytes, reset_peak, spread, synchronise
from benchmarks.iteration.iteration import OURS, RELEASED, Shape, iterate
from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.planning import make_plan
from customized_grpo.protocols import Pair, Policy
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.grpo import trained_count
from customized_grpo.trainer.windows import stochastic_steps
from customized_grpo.utils.records import read_records

#: Each way by name, with the images of its group.
_WAYS = (
    ("ours", OURS, 8),
    ("diffusers + peft", Shape("diffusers + peft", own_layers=False), 8),
    ("released shape", RELEASED, 2),
)
_STEPS = 4
#: Stages of an iteration by the phase of `cgrpo plan` that they belong to.
_PHASES = {
    "encode": "encoding", "sample": "sampling", "decode": "scoring", "score": "scoring", "update": "training",
    "probe": "training",
}  # fmt: skip
#: With a tiny model, `cgrpo train` on less.
_SHORT = (
    "train.iterations=2", "train.updates=1", "train.sample_every=2", "rollout.steps=2", "rollout.group_size=2",
    "rollout.pairs=1", "evaluation.data.size=2", "evaluation.images=1", "evaluation.steps=1", "train.trackers=[]",
)  # fmt: skip


def kontext(context: Context) -> Iterator[Row]:
    """One iteration with the recipe's settings, but fewer images and steps, as the columns show, and no initial noise
    shared by a group, so that each image takes all of its steps. Extrapolated to the recipe:
    `pairs * encode + images * (steps * sample + trained steps * update + decode + score) + probe`, each measured per
    unit. The released shape computes one image at a time and encodes its prompt and reference again. Text encoders have
    one layer here, so encoding costs less than with the real ones. Each way is measured once, after a short warm-up.
    The plan is that of `cgrpo plan` for the configuration measured, without its allowance for the allocator.
    """
    yield from _iterations(context, "kontext-dev.yaml")


def paper(context: Context) -> Iterator[Row]:
    """UNO's position ids and moving window of stochastic steps, but without its LoRA, which would be fused into the
    weights; otherwise as for kontext-dev.yaml.
    """
    yield from _iterations(context, "paper.yaml")


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
    assert lora is not None
    policy_config = context.policy_config(
        rank=lora.rank, targets=lora.targets, kind=whole.policy.kind,
        gradient_checkpointing=whole.policy.gradient_checkpointing, guidance=whole.policy.guidance,
    )  # fmt: skip
    policy = context.policy(policy_config)
    configs = context.reward_configs(whole.rewards)
    terms = [
        RewardTerm(reward, one.role, one.weight, one.limit)
        for reward, one in zip(context.rewards(configs), configs, strict=True)
    ]
    scaled = whole.model_copy(update={"policy": policy_config, "rewards": configs})
    pairs = context.pairs(1)
    for _, shape, _ in _WAYS[:2]:  # warms up
        iterate(_scaled(scaled, 2, 2), policy, terms, pairs, shape, _Stages(policy.device))
    ours: Row = {}
    for way, shape, images in _WAYS:
        context.tidy()
        config = _scaled(scaled, min(images, 2) if context.tiny else images, _STEPS)
        row = context.attempt({"way": way}, partial(_measure, config, whole, policy, terms, pairs, shape))
        ours = ours or row
        if "failed" not in row and "failed" not in ours:
            row["speed_up_of_ours"] = row["recipe_s"] / ours["recipe_s"]
        yield row


def _scaled(config: Config, images: int, steps: int) -> Config:
    """Return the settings with one pair, so many images, and no more steps than the stochastic ones need."""
    rollout = config.rollout
    steps = steps if rollout.window is None else 1 + rollout.window.size
    fewer = {"pairs": 1, "group_size": images, "steps": steps, "shared_noise": False}
    train = config.train.model_copy(update={"updates": 1, "iterations": 1})
    return config.model_copy(update={"rollout": rollout.model_copy(update=fewer), "train": train})


def _measure(
    config: Config, whole: Config, policy: Policy, terms: Sequence[RewardTerm], pairs: Sequence[Pair], shape: Shape
) -> Row:
    stages = _Stages(policy.device)
    iterate(config, policy, terms, pairs, shape, stages)
    done, wanted = _units(config, 1, shape), _units(whole, whole.rollout.pairs, shape)
    per_unit = {stage: seconds / done[stage] for stage, seconds in stages.totals.items()}
    images, total = config.rollout.group_size, sum(stages.totals.values())
    used = shape.of(config)
    measured: dict[str, int | None] = {}
    for stage, phase in _PHASES.items():
        found = stages.peaks[stage]
        measured[phase] = None if found is None else max(found, measured.get(phase) or 0)
    highest = max((found for found in measured.values() if found is not None), default=None)
    row: Row = {
        "images": images,
        "steps": config.rollout.steps,
        "trained_steps": done["update"] // images,
        "batch_sizes": f"{used.rollout.batch_size}, {used.train.batch_size}",
        "s_per_image": total / images,
        "stages": stages.totals,
        "s_per_unit": per_unit,
        "recipe_units": wanted,
        "recipe_s": sum(wanted[stage] * seconds for stage, seconds in per_unit.items()),
        "phases_gb": {phase: None if found is None else found / 1e9 for phase, found in measured.items()},
        "peak_gb": None if highest is None else highest / 1e9,
    }
    if shape is OURS:
        planned = {phase: sum(parts.values()) for phase, parts in make_plan(config).device.items()}
        row |= {
            "planned_phases_gb": {phase: found / 1e9 for phase, found in planned.items()},
            "planned_gb": max(planned.values()) / 1e9,
            "plan_difference_percent": difference(max(planned.values()), highest),
        }
    return row


def _units(config: Config, pairs: int, shape: Shape) -> dict[str, int]:
    """Return how often an iteration does the work of each stage."""
    images = pairs * config.rollout.group_size
    stochastic = len(stochastic_steps(config.rollout, config.seed, 0))
    trained = trained_count(stochastic, config.train.trained_fraction)
    return {
        "encode": images if shape.encode_each else pairs, "sample": images * config.rollout.steps, "decode": images,
        "score": images, "update": images * trained, "probe": 1,
    }  # fmt: skip


def default_training(context: Context) -> Iterator[Row]:
    """The embedded model in float32, with base and final evaluation."""
    run = context.folder / "default"
    short = [part for setting in _SHORT for part in ("--set", setting)] if context.tiny else []
    command = [sys.executable, "-m", "customized_grpo", "train", "--out", str(run), *short]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"cgrpo train exited with {done.returncode}: {''.join(last)}")
    iterations = [record["seconds/total"] for record in read_records(run / "metrics.jsonl")]
    base, tuned = (_means(run / "evaluation" / name / "scores.json") for name in ("base", "tuned"))
    gains = {f"{name}_gain_percent": 100 * (tuned[name] / base[name] - 1) for name in ("identity", "prompt")}
    yield {"wall_time_s": seconds, "iterations": len(iterations), "s_per_iteration": spread(iterations), **gains}


def _means(scores: Path) -> dict[str, float]:
    """Return mean scores by the reward's name."""
    found = json.loads(scores.read_text(encoding="utf-8"))["scores"]
    return {name: mean(value for value in values if value is not None) for name, values in found.items()}
