"""Customized-GRPO: draw groups, score them, shape their advantages, move the policy. Top to bottom."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.method import SAMPLERS
from customized_grpo.protocols import Conditions, Pair, PairDataset, Policy, Reward
from customized_grpo.records import append_record, truncate_records
from customized_grpo.rewards import score
from customized_grpo.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from customized_grpo.training.credit import assign_credit
from customized_grpo.training.order import images_of_updates, pairs_of_iteration
from customized_grpo.training.rollout import (
    Trajectories,
    batches,
    image_noise,
    noise_levels,
    sample_trajectories,
)
from customized_grpo.training.update import Items, Updater, draw_trained_steps

_CONDITIONS_KEPT = 256  # pairs whose encoded conditions stay in memory


@dataclass(frozen=True)
class Observer:
    """What a caller wants to hear of a running training; both are called on the main process alone.

    `on_iteration(record)` follows every iteration, `on_sample(iterations_done)` every `sample_every`-th; what
    the latter returns joins the record.
    """

    on_iteration: Callable[[Mapping[str, float]], None]
    on_sample: Callable[[int], Mapping[str, float]]


def train(
    config: Config,
    run: Path,
    policy: Policy,
    dataset: PairDataset,
    rewards: Sequence[Reward],
    accelerator: Accelerator,
    observer: Observer,
) -> None:
    """Train `policy` for the configured iterations, from the run's newest checkpoint where it has one.

    Leaves metrics.jsonl and checkpoints in the folder `run`. Groups are dealt to the processes in turn;
    gradients are summed over all of them, so that their number does not change what is learned.
    """
    rollout, tuning = config.rollout, config.train
    step = SAMPLERS[rollout.sampler]
    sigmas = noise_levels(policy, rollout.steps, rollout.shift)
    optimizer = torch.optim.AdamW(
        policy.trainable().values(),
        lr=tuning.learning_rate,
        betas=tuning.betas,
        weight_decay=tuning.weight_decay,
    )
    updater = Updater(policy, optimizer, tuning, step, rollout.eta, lambda t: _sum(accelerator, t))
    encode = _Encoder(policy)
    first = resume(run, policy, optimizer)

    for iteration in range(first, tuning.iterations):
        began = time.perf_counter()
        indices = pairs_of_iteration(len(dataset), rollout.pairs, config.seed, iteration)
        mine = range(accelerator.process_index, rollout.pairs, accelerator.num_processes)
        pairs = [dataset[indices[group]] for group in mine]

        # 1. Every pair's group of images, by stochastic steps.
        images = [(pair, image) for pair in pairs for image in range(rollout.group_size)]
        conditions = [encode(pair) for pair, _ in images]
        drawn = [
            (
                rows,
                _draw(
                    policy,
                    config,
                    iteration,
                    [images[i] for i in rows],
                    [conditions[i] for i in rows],
                    sigmas,
                ),
            )
            for rows in batches(conditions, rollout.batch_size)
        ]
        sampled = time.perf_counter()

        # 2. Their scores, (groups, G) of each reward.
        pictures: list[Tensor] = [torch.empty(0)] * len(images)
        for rows, batch in drawn:
            for row, picture in zip(rows, policy.decode(batch.clean), strict=True):
                pictures[row] = picture
        scores = score(rewards, torch.stack(pictures), [pair for pair, _ in images]) if images else {}
        grouped = {name: values.view(len(pairs), rollout.group_size) for name, values in scores.items()}
        scored = time.perf_counter()

        # 3. Advantages: group-relative by role, shaped by synergy (SARS), weighted by time (TDW).
        record: dict[str, float] = {}
        if images:
            credit, record = assign_credit(grouped, config.rewards, config.method)
            names = [f"{pair.key}/{image}" for pair, image in images]
            trained = draw_trained_steps(rollout.steps, tuning.trained_fraction, config.seed, iteration, names)
            advantages = credit.at(config.method, rollout.steps, trained)

        # 4. The clipped surrogate, over this process's share of each update's images.
        position = {group * rollout.group_size + i: n * rollout.group_size + i
                    for n, group in enumerate(mine) for i in range(rollout.group_size)}  # fmt: skip
        moved: list[dict[str, float]] = []
        for chosen in images_of_updates(rollout.pairs * rollout.group_size, tuning.updates, config.seed, iteration):
            local = {position[i] for i in chosen if i in position}
            items = [
                _items(batch, rows, local, trained, advantages, sigmas)
                for rows, batch in drawn
                if local.intersection(rows)
            ]
            moved.append(updater.update(items, sigmas[1]))
        if "kl" not in moved[0] and images:
            probe = _items(
                drawn[0][1],
                drawn[0][0],
                set(drawn[0][0]),
                trained[:, :1],
                advantages[:, :1],
                sigmas,
            )
            record["kl"] = float(updater.divergence(next(probe.split(tuning.batch_size)), sigmas[1]).mean())
        updated = time.perf_counter()

        # 5. The log, the pictures, the checkpoint.
        record |= {"seconds/sampling": sampled - began, "seconds/scoring": scored - sampled}
        record |= {"seconds/updating": updated - scored, "seconds/total": updated - began}
        record = _mean_over_processes(accelerator, record, len(pairs))
        for name in moved[0]:
            record[name] = sum(part[name] for part in moved) / len(moved)
        record = {"iteration": iteration + 1, **record, "learning_rate": tuning.learning_rate}
        done = iteration + 1
        if accelerator.is_main_process:
            if done % tuning.sample_every == 0 or done == tuning.iterations:
                record |= observer.on_sample(done)
            append_record(run / "metrics.jsonl", record)
            observer.on_iteration(record)
            if done % tuning.checkpoint_every == 0 or done == tuning.iterations:
                save_checkpoint(run / "checkpoints", done, policy, optimizer, tuning.keep_checkpoints)
        accelerator.wait_for_everyone()


def resume(run: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest whole checkpoint of the run, if any; returns the number of iterations done."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    done = 0 if checkpoint is None else load_checkpoint(checkpoint, policy, optimizer)
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        truncate_records(metrics, done)
    return done


class _Encoder:
    """Conditions of a pair, encoded once as long as it stays among the newest ones."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kept: OrderedDict[str, Conditions] = OrderedDict()

    def __call__(self, pair: Pair) -> Conditions:
        if pair.key not in self._kept:
            self._kept[pair.key] = self._policy.encode(pair.prompt, pair.references)
            if len(self._kept) > _CONDITIONS_KEPT:
                self._kept.popitem(last=False)
        return self._kept[pair.key]


def _draw(
    policy: Policy,
    config: Config,
    iteration: int,
    images: Sequence[tuple[Pair, int]],
    conditions: Sequence[Conditions],
    sigmas: Tensor,
) -> Trajectories:
    """One batch of images, each from its own noise; a group may share the noise that it starts from."""
    rollout = config.rollout
    initial, steps = [], []
    for pair, image in images:
        start: int | str = "group" if rollout.shared_noise else image
        initial.append(image_noise(policy, 1, config.seed, "initial", iteration, pair.key, start))
        steps.append(image_noise(policy, rollout.steps - 1, config.seed, "steps", iteration, pair.key, image))
    return sample_trajectories(
        policy,
        Conditions.join(conditions),
        torch.cat(initial),
        torch.stack(steps),
        sigmas,
        SAMPLERS[rollout.sampler],
        rollout.eta,
    )


def _items(
    batch: Trajectories,
    rows: Sequence[int],
    chosen: set[int],
    trained: Tensor,
    advantages: Tensor,
    sigmas: Tensor,
) -> Items:
    """The trained steps of the chosen images of a batch, one step after another as the rollout took them."""
    local = torch.tensor([i for i, row in enumerate(rows) if row in chosen])
    images = torch.tensor([row for row in rows if row in chosen])
    steps, order = trained[images].flatten().sort(stable=True)
    return Items.of(
        batch,
        local.repeat_interleave(trained.shape[1])[order],
        steps,
        advantages[images].flatten()[order],
        sigmas,
    )


def _sum(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    if accelerator.num_processes == 1:
        return tensor
    summed: Tensor = accelerator.reduce(tensor, "sum")
    return summed


def _mean_over_processes(accelerator: Accelerator, record: dict[str, float], groups: int) -> dict[str, float]:
    """Means of the processes' own means, weighted by their groups."""
    if accelerator.num_processes == 1:
        return record
    names = sorted(set().union(*accelerator.gather_for_metrics([set(record)], use_gather_object=True)))
    values = torch.tensor([[record.get(name, 0.0) * groups, float(groups)] for name in names])
    summed = _sum(accelerator, values.to(accelerator.device))
    return {name: float(total / count) for name, (total, count) in zip(names, summed, strict=True)}
