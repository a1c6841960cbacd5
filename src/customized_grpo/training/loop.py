"""Customized-GRPO: draw groups, score them, shape their advantages, move the policy. Top to bottom."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from customized_grpo.config import Config, ConfigError, TrainConfig
from customized_grpo.method import SAMPLERS
from customized_grpo.protocols import Conditions, Pair, PairDataset, Policy, Reward
from customized_grpo.records import append_record, truncate_records
from customized_grpo.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from customized_grpo.training.credit import assign_credit, steps_to_weigh_at
from customized_grpo.training.groups import Groups, group_diversity
from customized_grpo.training.order import images_of_updates, pairs_of_iteration
from customized_grpo.training.rollout import decode_images, draw_images, noise_levels, score_groups
from customized_grpo.training.update import Items, Updater, draw_trained_steps

_CONDITIONS_KEPT = 256  # pairs whose encoded conditions stay in memory


@dataclass(frozen=True)
class Observer:
    """What a caller wants to hear of a running training; all are called on the main process alone.

    `on_iteration(record)` follows every iteration, `on_sample(iterations_done)` every `sample_every`-th and the
    last; what the latter returns joins the record. Before it, `on_groups(iterations_done, groups)` gets the groups
    of the main process.
    """

    on_iteration: Callable[[Mapping[str, float]], None]
    on_sample: Callable[[int], Mapping[str, float]]
    on_groups: Callable[[int, Groups], None] = lambda iteration, groups: None


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
    gradients are summed over all of them, so that their number does not change what is learned. Raises
    ConfigError where there are more processes than groups.
    """
    if config.rollout.pairs < accelerator.num_processes:
        raise ConfigError(
            f"rollout.pairs: {config.rollout.pairs} groups for {accelerator.num_processes} processes; "
            "give each at least one"
        )
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
        clock = [time.perf_counter()]
        indices = pairs_of_iteration(len(dataset), rollout.pairs, config.seed, iteration)
        mine = range(accelerator.process_index, rollout.pairs, accelerator.num_processes)
        pairs = [dataset[indices[group]] for group in mine]

        # 1. Every pair's group of images, by stochastic steps.
        images = [(pair, number) for pair in pairs for number in range(rollout.group_size)]
        keys = [(pair.key, number) for pair, number in images]
        conditions = [encode(pair) for pair, _ in images]
        drawn = draw_images(policy, conditions, keys, rollout, sigmas, seed=config.seed, iteration=iteration)
        clock.append(time.perf_counter())

        # 2. Their scores, (groups, G) of each reward.
        pictures = decode_images(policy, drawn)
        grouped = score_groups(pictures, rewards, pairs, rollout.group_size)
        diversity = group_diversity(pictures, rollout.group_size)
        pictures = pictures.cpu()
        clock.append(time.perf_counter())

        # 3. Advantages: group-relative by role, shaped by synergy (SARS), weighted by time (TDW).
        credit, record = assign_credit(grouped, config.rewards, config.method)
        record["diversity"] = diversity
        trained = draw_trained_steps(rollout.steps, tuning.trained_fraction, config.seed, iteration, keys)
        weighed_at = steps_to_weigh_at(config.method.weighting, trained, config.seed, iteration, keys)
        advantages = credit.at(config.method, rollout.steps, weighed_at)

        # 4. The clipped surrogate, over this process's part of each update's images.
        rate = _learning_rate(tuning, iteration)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        moved = []
        for update in images_of_updates(rollout.pairs * rollout.group_size, tuning.updates, config.seed, iteration):
            local = _local(update, mine, rollout.group_size)
            items = [Items.chosen(batch, local, trained, advantages, sigmas) for batch in drawn]
            moved.append(updater.update(items, sigmas[1]))
        if "kl" not in moved[0]:
            record["kl"] = updater.probe(drawn[0], trained, sigmas)
        clock.append(time.perf_counter())

        # 5. The log, the pictures, the checkpoint.
        stages = ("sampling", "scoring", "updating")
        record |= {f"seconds/{stage}": end - start for stage, (start, end) in zip(stages, pairwise(clock), strict=True)}
        record["seconds/total"] = clock[-1] - clock[0]
        record = _mean_over_processes(accelerator, record, len(pairs))
        record |= {name: sum(part[name] for part in moved) / len(moved) for name in moved[0]}
        done = iteration + 1
        record = {"iteration": done, **record, "learning_rate": rate}
        last = done == tuning.iterations
        if accelerator.is_main_process:
            if done % tuning.sample_every == 0 or last:
                shape = (len(pairs), rollout.group_size)
                learned = advantages.mean(1).view(shape)
                grid = pictures.view(*shape, *pictures.shape[1:])
                observer.on_groups(done, Groups(pairs, grid, grouped, credit, learned))
                record |= observer.on_sample(done)
            append_record(run / "metrics.jsonl", record)
            observer.on_iteration(record)
            if done % tuning.checkpoint_every == 0 or last:
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


def _learning_rate(config: TrainConfig, iteration: int) -> float:
    """The rate of an iteration, counted from 0: a function of it alone, so that a resumed run goes on alike."""
    return config.learning_rate * (1 - iteration / config.iterations if config.schedule == "linear" else 1)


def _local(images: Sequence[int], groups: range, group_size: int) -> set[int]:
    """Those of the iteration's images that are in this process's groups, by their number in this process."""
    places = {group: place for place, group in enumerate(groups)}
    return {
        places[image // group_size] * group_size + image % group_size
        for image in images
        if image // group_size in places
    }


def _sum(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    if accelerator.num_processes == 1:
        return tensor
    summed: Tensor = accelerator.reduce(tensor, "sum")
    return summed


def _mean_over_processes(accelerator: Accelerator, record: dict[str, float], groups: int) -> dict[str, float]:
    """Means of the processes' own means, weighted by their groups."""
    if accelerator.num_processes == 1:
        return record
    values = torch.tensor([*record.values(), 1.0], device=accelerator.device) * groups
    *totals, count = _sum(accelerator, values).tolist()
    return {name: total / count for name, total in zip(record, totals, strict=True)}
