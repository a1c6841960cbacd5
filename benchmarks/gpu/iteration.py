"""Sections on whole training: an iteration of a recipe in three ways, and `cgrpo train` with no options."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from benchmarks.gpu.context import ROOT, Context
from benchmarks.gpu.model import difference
from benchmarks.gpu.timing import Row, peak_bytes, reset_peak, spread
from benchmarks.iteration.iteration import OURS, RELEASED, Shape, iterate
from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.planning import make_plan
from customized_grpo.protocols import Pair, Policy
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.grpo import trained_count
from customized_grpo.trainer.profiling import Clock
from customized_grpo.trainer.windows import stochastic_steps
from customized_grpo.utils.records import read_records

#: Each way by name, with the images of its group.
_WAYS = (
    ("ours", OURS, 8),
    ("diffusers + peft", Shape("diffusers + peft", own_layers=False), 8),
    ("released shape", RELEASED, 2),
)
_STEPS = 4
#: Phases of `cgrpo plan`, with the stages of an iteration that belong to them.
_PHASES = {
    "encoding": ("encode",),
    "sampling": ("sample",),
    "scoring": ("decode", "score"),
    "training": ("update", "probe"),
}
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


class _Stages(Clock):
    """Seconds and peak bytes of each stage."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.peaks: dict[str, int] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        reset_peak(self._device)
        with super().__call__(stage):
            yield
        self.peaks[stage] = max(peak_bytes(self._device), self.peaks.get(stage, 0))


def _iterations(context: Context, recipe: str) -> Iterator[Row]:
    whole = load_config(ROOT / "recipes" / recipe)
    lora = whole.policy.lora
    assert lora is not None
    policy = context.policy(
        lora.rank, lora.targets, kind=whole.policy.kind, guidance=whole.policy.guidance,
        gradient_checkpointing=whole.policy.gradient_checkpointing,
    )  # fmt: skip
    configs = context.reward_configs(whole.rewards)
    terms = reward_terms(configs, context.device)
    scaled = whole.model_copy(update={"policy": policy.config, "rewards": configs})
    for _, shape, _ in _WAYS[:2]:  # warms up
        iterate(_scaled(scaled, 2, 2), policy, terms, [context.pair], shape, _Stages(policy.device))
    ours: Row = {}
    for way, shape, images in _WAYS:
        context.tidy()
        config = _scaled(scaled, min(images, 2) if context.tiny else images, _STEPS)
        row = context.attempt({"way": way}, partial(_measure, config, whole, policy, terms, [context.pair], shape))
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
    measured = {phase: max(stages.peaks[stage] for stage in parts) / 1e9 for phase, parts in _PHASES.items()}
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
        "phases_gb": measured,
        "peak_gb": max(measured.values()),
    }
    if shape is OURS:
        planned = {phase: sum(parts.values()) / 1e9 for phase, parts in make_plan(config).device.items()}
        row |= {
            "planned_phases_gb": planned,
            "planned_gb": max(planned.values()),
            "plan_difference_percent": difference(max(planned.values()), row["peak_gb"]),
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
