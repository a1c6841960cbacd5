"""One iteration of training, stage by stage, each inside what measures it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.method import SAMPLERS
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions, Pair, Policy, Reward
from customized_grpo.rewards import score
from customized_grpo.speed.flops import flop_counter
from customized_grpo.training.credit import assign_credit, objectives_of, steps_to_weigh_at
from customized_grpo.training.memory import peak_bytes
from customized_grpo.training.optimizer import build_optimizer
from customized_grpo.training.order import images_of_updates
from customized_grpo.training.processes import ALONE
from customized_grpo.training.rollout import Trajectories, draw_images, noise_levels
from customized_grpo.training.update import Items, Updater, draw_trained_steps
from customized_grpo.training.windows import stochastic_steps

STAGES = ("encode", "sample", "decode", "score", "update")
_HELD = "held before"
Result = TypeVar("Result")


class Runner(Protocol):
    """Does the work of the stage of that name, and measures something of it."""

    def __call__(self, stage: str, work: Callable[[], Result], /) -> Result: ...


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
        if self.images_at_once is None:
            return config
        size = {"batch_size": self.images_at_once}
        return config.model_copy(
            update={
                "rollout": config.rollout.model_copy(update=size),
                "train": config.train.model_copy(update=size),
            }
        )


OURS = Shape("whole groups")
#: Fault 5 of the authors' released script: one image at a time, its reference and prompt encoded again each time, by
#: the libraries' own layers and blocks.
RELEASED = Shape("one image at a time", images_at_once=1, encode_each=True, own_layers=False)


def iterate(
    config: Config, policy: Policy, rewards: Sequence[Reward], pairs: Sequence[Pair], shape: Shape, stage: Runner
) -> None:
    """The algorithmic work of one iteration on `pairs`, in that shape; it moves the policy."""
    config = shape.of(config)
    rollout, tuning, method = config.rollout, config.train, config.method
    images = [(pair, number) for pair in pairs for number in range(rollout.group_size)]
    keys = [(pair.key, number) for pair, number in images]
    sigmas, step = noise_levels(policy, rollout.steps, rollout.shift), SAMPLERS[rollout.sampler]
    stochastic = stochastic_steps(rollout, config.seed, 0)
    trained = draw_trained_steps(stochastic, tuning.trained_fraction, config.seed, 0, keys)
    optimizer = build_optimizer(list(policy.trainable().values()), tuning, ALONE, objectives_of(method))
    updater = Updater(policy, optimizer, tuning, step, rollout.eta)

    def encode() -> list[Conditions]:
        if shape.encode_each:
            return [policy.encode(pair.prompt, pair.references) for pair, _ in images]
        encoded = {pair.key: policy.encode(pair.prompt, pair.references) for pair in pairs}
        return [encoded[pair.key] for pair, _ in images]

    def sample() -> list[Trajectories]:
        means = tuning.ratio == "guard"
        return list(
            draw_images(
                policy, conditions, keys, rollout, sigmas, stochastic,
                seed=config.seed, iteration=0, trained=trained, means=means,
            )
        )  # fmt: skip

    def judge() -> dict[str, Tensor]:
        parts = [
            score(rewards, shown, [images[i][0] for i in batch.images.tolist()])
            for batch, shown in zip(drawn, pictures, strict=True)
        ]
        order = torch.cat([batch.images for batch in drawn]).argsort()
        grouped = (len(pairs), rollout.group_size)
        return {name: torch.cat([part[name] for part in parts])[order].view(grouped) for name in parts[0]}

    def update() -> None:
        credit, _ = assign_credit(scores, config.rewards, method)
        weighed_at = steps_to_weigh_at(method.weighting, trained, config.seed, 0, keys)
        advantages = credit.objectives_at(method, rollout.steps, weighed_at)
        for chosen in images_of_updates(len(images), tuning.updates, config.seed, 0):
            items = [Items.chosen(batch, set(chosen), trained, advantages, sigmas) for batch in drawn]
            updater.update(items, sigmas[1])

    conditions = stage("encode", encode)
    drawn = stage("sample", sample)
    pictures = stage("decode", lambda: [policy.decode(batch.clean) for batch in drawn])
    scores = stage("score", judge)
    stage("update", update)


def measure(
    config: Config,
    policy: Policy,
    rewards: Sequence[Reward],
    pairs: Sequence[Pair],
    shapes: Sequence[Shape],
    repeats: int,
    progress: Callable[[], None] = lambda: None,
    *,
    count: bool = True,
) -> dict[str, dict[str, Stage]]:
    """Stages by the shapes' names. Seconds are the median of `repeats` iterations, the shapes taking turns.

    An iteration of each before them warms up; two more count operations and bytes, which would disturb the clock.
    Where `count` is False operations are left out, 0 of every stage.
    """

    found: dict[str, dict[str, list[float]]] = {}
    for kind, runner, times in (
        ("", _Plain(), 1),
        ("flops", _Flops(), int(count)),
        ("bytes", _Bytes(policy.device), 1),
        ("seconds", _Clock(policy.device), repeats),
    ):
        for _ in range(times):
            for shape in shapes:
                runner.found = found.setdefault(f"{kind} {shape.name}", {stage: [] for stage in STAGES})
                with nullcontext() if shape.own_layers else libraries_own():
                    iterate(config, policy, rewards, pairs, shape, runner)
                progress()

    def median_of(kind: str, shape: Shape, stage: str) -> float:
        return median(found[f"{kind} {shape.name}"][stage])

    return {
        shape.name: {
            stage: Stage(
                median_of("seconds", shape, stage),
                median_of("flops", shape, stage) if count else 0.0,
                int(median_of("bytes", shape, stage)),
                int(median_of("bytes", shape, f"{_HELD} {stage}")),
            )
            for stage in STAGES
        }
        for shape in shapes
    }


def runs_of(shapes: int, repeats: int) -> int:
    """How often `measure` calls its `progress`."""
    return shapes * (3 + repeats)


class _Plain:
    """Measures nothing. `found` takes what the other runners measure, by stage."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        return work()


class _Clock(_Plain):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        self._wait()
        began = time.perf_counter()
        result = work()
        self._wait()
        self.found[stage].append(time.perf_counter() - began)
        return result

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


class _Flops(_Plain):
    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        with flop_counter() as counter:
            result = work()
        self.found[stage].append(float(counter.get_total_flops()))
        return result


class _Bytes(_Clock):
    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        results: list[Result] = []
        held = torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0
        self.found.setdefault(f"{_HELD} {stage}", []).append(float(held))
        self.found[stage].append(float(peak_bytes(self._device, lambda: results.append(work()))))
        return results[0]
