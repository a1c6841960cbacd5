"""Measure one training iteration, stage by stage: seconds, floating-point operations and memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from benchmarks.iteration.flops import flop_counter
from customized_grpo.config import Config
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions, Pair, Policy
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.memory import PeakBytes
from customized_grpo.trainer.profiling import STAGES, Clock, Profiler
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer

Made = TypeVar("Made", bound=Profiler)


@dataclass(frozen=True)
class Stage:
    """Cost of one stage of an iteration.

    Args:
        seconds: Wall-clock time.
        flops: Floating-point operations.
        peak_bytes: Peak bytes of tensors on top of `held_bytes`.
        held_bytes: Bytes of weights and of earlier stages' results; 0 on a CPU, where they are not known.
    """

    seconds: float
    flops: float
    peak_bytes: int
    held_bytes: int = 0


@dataclass(frozen=True)
class Shape:
    """How an iteration's images go through the model.

    Args:
        name: Name in tables and in bench.json.
        images_at_once: Batch size of sampling and training; as configured if None.
        encode_each: Encode the conditioning once per image instead of once per pair.
        own_layers: Use this package's layers instead of diffusers' and peft's.
    """

    name: str
    images_at_once: int | None = None
    encode_each: bool = False
    own_layers: bool = True

    def of(self, config: Config) -> Config:
        """Return the settings in this shape. Scoring waits for sampling, so that each stage has a time of its own."""
        size = {} if self.images_at_once is None else {"batch_size": self.images_at_once}
        rollout = config.rollout.model_copy(update={"overlap": False, **size})
        # Repeated updates on the same images may drift far; nothing is learned here.
        train = config.train.model_copy(update={"max_drift": None, **size})
        return config.model_copy(update={"rollout": rollout, "train": train})


OURS = Shape("whole groups")
#: The authors' released script: one image at a time, its reference and prompt encoded again each time, by the
#: libraries' own layers.
RELEASED = Shape("one image at a time", images_at_once=1, encode_each=True, own_layers=False)


class _EncodesEach(CustomizedGRPOTrainer):
    def encode(self, pairs: Sequence[Pair]) -> list[Conditions]:
        return [self.policy.encode(pair.prompt, pair.references) for pair in pairs]


def iterate(
    config: Config,
    policy: Policy,
    rewards: Sequence[RewardTerm],
    pairs: Sequence[Pair],
    shape: Shape,
    profiler: Profiler,
) -> None:
    """Run the first iteration of a training on `pairs` in that shape; it updates the policy."""
    kind = _EncodesEach if shape.encode_each else CustomizedGRPOTrainer
    trainer = kind(policy, rewards, pairs, None, shape.of(config), Path())
    with nullcontext() if shape.own_layers else libraries_own(), trainer.profile(profiler):
        trainer.train_step()


def measure(
    config: Config,
    policy: Policy,
    rewards: Sequence[RewardTerm],
    pairs: Sequence[Pair],
    shapes: Sequence[Shape],
    repeats: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Stage]]:
    """Measure the stages of each shape, by their names; seconds are the median of `repeats` iterations.

    The shapes take turns. One more iteration of each warms up, and two count operations and bytes, which would slow
    down a timed one. `progress` is called after every iteration.
    """

    def run(made: dict[str, Made]) -> dict[str, Made]:
        for shape in shapes:
            iterate(config, policy, rewards, pairs, shape, made[shape.name])
            progress()
        return made

    names, device = [shape.name for shape in shapes], policy.device
    run({name: Clock() for name in names})  # warms up
    flops = run({name: _Flops() for name in names})
    memory = run({name: _Bytes(device) for name in names})
    clocks = [run({name: Clock(device) for name in names}) for _ in range(repeats)]
    return {
        name: {
            stage: Stage(
                median(clock[name].totals.get(stage, 0.0) for clock in clocks),
                flops[name].totals[stage],
                int(memory[name].totals[stage]),
                memory[name].held.get(stage, 0),
            )
            for stage in STAGES
        }
        for name in names
    }


class _Flops:
    """Floating-point operations of each stage."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with flop_counter() as counter:
            yield
        self.totals[stage] += counter.get_total_flops()


class _Bytes:
    """Peak bytes of tensors in a stage beyond those there before it, which are `held`."""

    def __init__(self, device: torch.device) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self.held: dict[str, int] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        held = torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0
        with PeakBytes(self._device) as peak:
            yield
        self.held.setdefault(stage, held)
        self.totals[stage] = max(self.totals[stage], peak.bytes + held - self.held[stage])
