"""An iteration of training, measured stage by stage: seconds, floating-point operations and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.iteration.flops import flop_counter
from customized_grpo.config import Config
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions, Pair, Policy
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.memory import PeakBytes
from customized_grpo.trainer.profiling import STAGES, Clock, Profiler
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer


@dataclass(frozen=True)
class Stage:
    """What one stage of an iteration takes: seconds, floating-point operations, bytes at its peak.

    Those bytes come on top of `held_bytes`, of weights and what earlier stages left; 0 on a CPU, where it is not known.
    """

    seconds: float
    flops: float
    peak_bytes: int
    held_bytes: int = 0


@dataclass(frozen=True)
class Shape:
    """How an iteration's images go through the model.

    So many at once, conditions encoded once a pair or once an image, by our own LoRA layers or by peft's.
    """

    name: str
    images_at_once: int | None = None  #: None: as configured
    encode_each: bool = False
    own_layers: bool = True

    def of(self, config: Config) -> Config:
        """Return the settings in this shape. Scoring waits for sampling, so that each stage has a time of its own."""
        size = {} if self.images_at_once is None else {"batch_size": self.images_at_once}
        return config.model_copy(
            update={
                "rollout": config.rollout.model_copy(update={"overlap": False, **size}),
                # Repeated updates on the same images may drift far; nothing is learned here.
                "train": config.train.model_copy(update={"max_drift": None, **size}),
            }
        )


OURS = Shape("whole groups")
#: Fault 5 of the authors' released script: one image at a time, its reference and prompt encoded again each time, by
#: the libraries' own layers and blocks.
RELEASED = Shape("one image at a time", images_at_once=1, encode_each=True, own_layers=False)


class _EncodesEach(CustomizedGRPOTrainer):
    """Encodes each image's reference and prompt again."""

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
    """Run the first iteration of a training on `pairs`, in that shape; it updates the policy."""
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
    *,
    count: bool = True,
) -> dict[str, dict[str, Stage]]:
    """Stages by the shapes' names. Seconds are the median of `repeats` iterations, the shapes taking turns.

    An iteration of each before them warms up; two more count operations and bytes, which would disturb the clock.
    Where `count` is False operations are omitted, 0 for every stage.
    """
    found: dict[tuple[str, str], list[dict[str, float]]] = {}

    def run(kind: str, profiler: Callable[[], Profiler], times: int) -> None:
        for _ in range(times):
            for shape in shapes:
                made = profiler()
                iterate(config, policy, rewards, pairs, shape, made)
                found.setdefault((kind, shape.name), []).append(made.totals)
                if isinstance(made, _Bytes):
                    found.setdefault(("held", shape.name), []).append(made.held)
                progress()

    run("warm-up", Clock, 1)
    run("flops", _Flops, int(count))
    run("bytes", lambda: _Bytes(policy.device), 1)
    run("seconds", lambda: Clock(policy.device), repeats)

    def median_of(kind: str, shape: Shape, stage: str) -> float:
        return median(totals.get(stage, 0.0) for totals in found.get((kind, shape.name), [{}]))

    return {
        shape.name: {
            stage: Stage(
                median_of("seconds", shape, stage),
                median_of("flops", shape, stage),
                int(median_of("bytes", shape, stage)),
                int(median_of("held", shape, stage)),
            )
            for stage in STAGES
        }
        for shape in shapes
    }


def runs_of(shapes: int, repeats: int) -> int:
    """How often `measure` calls its `progress`."""
    return shapes * (3 + repeats)


class _Flops:
    """Floating-point operations of each stage."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with flop_counter() as counter:
            yield
        self.totals[stage] = self.totals.get(stage, 0.0) + counter.get_total_flops()


class _Bytes:
    """The most bytes of tensors that a stage holds beyond those that were there; `held` is how many these were."""

    def __init__(self, device: torch.device) -> None:
        self.totals: dict[str, float] = {}
        self.held: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        held = torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0
        peak = PeakBytes(self._device)
        with peak:
            yield
        first = stage not in self.held
        self.held[stage] = held if first else self.held[stage]
        self.totals[stage] = max(self.totals.get(stage, 0.0), peak.bytes + held - self.held[stage])
