"""Customized-GRPO: draw groups, score them, shape their advantages, move the policy. Top to bottom."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from customized_grpo.config import Config, TrainConfig
from customized_grpo.method import SAMPLERS
from customized_grpo.protocols import Conditions, Pair, PairDataset, Policy, Reward
from customized_grpo.records import append_record, truncate_records
from customized_grpo.rewards import RewardError
from customized_grpo.stopping import Stopping
from customized_grpo.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from customized_grpo.training.credit import assign_credit, method_at, objectives_of, reward_name, steps_to_weigh_at
from customized_grpo.training.divergence import check_drift, check_skipped
from customized_grpo.training.ema import MovingAverage
from customized_grpo.training.groups import Groups, group_diversity
from customized_grpo.training.memory import BatchSize, measure_drawing
from customized_grpo.training.optimizer import Optimizer, build_optimizer
from customized_grpo.training.order import image_numbers, images_of_updates, pairs_of_iteration
from customized_grpo.training.processes import Processes
from customized_grpo.training.rollout import draw_images, noise_levels
from customized_grpo.training.scoring import finite_images, score_drawn, why_stop
from customized_grpo.training.update import Items, Updater, draw_trained_steps, mean_of_updates
from customized_grpo.training.windows import stochastic_steps

_CONDITIONS_KEPT = 256  # pairs whose encoded conditions stay in memory, where they are not kept on disk


@dataclass(frozen=True)
class Observer:
    """What a caller wants to hear of a running training.

    `on_sample(iterations_done)` is called on every process, each `sample_every`-th iteration and the last; what it
    returns joins the record. The others are called on the main process alone: `on_groups(iterations_done, groups)`
    before that with the groups that are its to show, `on_iteration(record)` after every iteration.
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
    stopping: Stopping | None = None,
) -> None:
    """Train `policy` for the configured iterations, from the run's newest checkpoint where it has one.

    Leaves metrics.jsonl and checkpoints in the folder `run`. Images are dealt to the processes, scores collected from
    them, gradients summed over them, so that their number does not change what is learned. Where `train.ema` asks for
    a moving average, the policy has it for weights at the end, and in samples.

    Raises:
        ConfigError: there are more processes than groups, or than images; memory does not suffice for one item.
        RewardError: a reward failed, or too many scores are missing; a checkpoint holds all iterations before.
        DivergenceError: the policy has left what can be trained; the last checkpoint is of before.
        Stopped: `stopping` was asked to; a checkpoint holds all whole iterations.
    """
    processes = Processes(accelerator)
    processes.check(config)
    rollout, tuning = config.rollout, config.train
    step = SAMPLERS[rollout.sampler]
    sigmas = noise_levels(policy, rollout.steps, rollout.shift)
    optimizer = build_optimizer(list(policy.trainable().values()), tuning, processes, objectives_of(config.method))
    averaged = MovingAverage(policy, tuning.ema)
    encode = _Encoder(policy, conditions_kept(config))
    overlap = policy.device.type != "cpu" if rollout.overlap is None else rollout.overlap

    stopping = stopping or Stopping(run)
    updater = Updater(
        policy,
        optimizer,
        tuning,
        step,
        rollout.eta,
        processes,
        before_step=stopping.forbid,
        after_step=averaged.update,
    )
    drawing = BatchSize("rollout.batch_size", rollout.batch_size, recovers=not optimizer.together)

    def save(done: int) -> None:
        if processes.is_main or optimizer.together:
            save_checkpoint(run / "checkpoints", done, policy, optimizer, tuning.keep_checkpoints, averaged.tensors)

    first = resume(run, policy, optimizer, averaged)
    processes.wait()  # until all have read it

    for iteration in range(first, tuning.iterations):
        stopping.allow(partial(save, iteration))
        began = time.perf_counter()
        indices = pairs_of_iteration(len(dataset), rollout.pairs, config.seed, iteration)
        mine = processes.images(rollout)
        pairs = {group: dataset[indices[group]] for group in sorted({image // rollout.group_size for image in mine})}

        # 1. Every pair's group of images, by stochastic steps: all of them, or those of a moving window.
        stochastic = stochastic_steps(rollout, config.seed, iteration)
        images = [pairs[image // rollout.group_size] for image in mine]
        numbers = image_numbers(indices, mine, rollout.group_size)
        keys = [(pair.key, number) for pair, number in zip(images, numbers, strict=True)]
        conditions = [encode(pair) for pair in images]
        trained = draw_trained_steps(stochastic, tuning.trained_fraction, config.seed, iteration, keys)
        if iteration == first:  # what of one image, of one step, fits into memory, where sizes are "auto"
            measure_drawing(drawing, policy, conditions[0], len(mine), processes.least)
            updater.measure_size(conditions[0], sigmas, len(mine) * trained.shape[1])
        batches = draw_images(
            policy,
            conditions,
            keys,
            rollout,
            sigmas,
            stochastic,
            seed=config.seed,
            iteration=iteration,
            trained=trained,
            means=tuning.ratio == "guard",
            size=drawing,
            rounds=updater.rounds,
        )

        # 2. Their scores, made beside the drawing of the next batch where that helps, and (groups, G) over processes.
        scored = score_drawn(policy, batches, rewards, images, overlap=overlap, size=drawing)
        updater.on_policy = True
        scores = processes.grouped(scored.scores, mine, rollout)
        began_updating = time.perf_counter()

        # 3. Advantages: group-relative by role, shaped by synergy (SARS), weighted by time (TDW).
        method = method_at(config.method, iteration, tuning.iterations)
        credit, record = assign_credit(scores, config.rewards, method)
        own = credit.of(torch.tensor(mine))
        left_out = set((~own.valid).nonzero().flatten().tolist())
        missing = int((~own.scored).sum())
        overflowed = int((~finite_images(scored.pictures)).sum())
        trouble = why_stop(missing, len(images), scored.failure, tuning.max_missing, processes.sum, overflowed)
        if trouble is not None:
            save(iteration)
            processes.wait()
            raise RewardError(f"{trouble} (in iteration {iteration + 1}; those before are kept: --resume {run})")
        weighed_at = steps_to_weigh_at(method.weighting, trained, config.seed, iteration, keys)
        objectives = own.objectives_at(method, rollout.steps, weighed_at)

        # 4. The clipped surrogate, over this process's part of each update's images.
        rate = _learning_rate(tuning, iteration)
        optimizer.set_rate(rate)
        moved = []
        places = {image: place for place, image in enumerate(mine)}
        for update in images_of_updates(rollout.pairs * rollout.group_size, tuning.updates, config.seed, iteration):
            local = {places[image] for image in update if image in places} - left_out
            items = [Items.chosen(batch, local, trained, objectives, sigmas) for batch in scored.drawn]
            moved.append(updater.update(items, sigmas[1], Items.idle(scored.drawn, sigmas)))
            check_skipped(updater.skipped, tuning.max_skipped, iteration + 1, run)
        probed, how_many = updater.probe(scored.drawn, trained, sigmas)

        # 5. The log, the pictures, the checkpoint.
        seconds = (*scored.seconds, time.perf_counter() - began_updating)
        measured = {f"seconds/{name}": s for name, s in zip(("sampling", "scoring", "updating"), seconds, strict=True)}
        measured["seconds/total"] = time.perf_counter() - began
        pictures = processes.whole_groups(scored.pictures, mine, rollout)
        record |= processes.mean({"diversity": group_diversity(pictures, rollout.group_size)}, len(pictures))
        record |= processes.mean(measured, len(mine)) | processes.mean(probed, how_many)
        check_drift(record["drift"], tuning.max_drift, iteration + 1, run)
        record |= mean_of_updates(moved)
        done = iteration + 1
        record = {"iteration": done, **record, "learning_rate": rate}
        last = done == tuning.iterations

        def keep(done: int = done, record: Mapping[str, float] = record) -> None:
            if processes.is_main:
                append_record(run / "metrics.jsonl", record)
            save(done)

        stopping.allow(keep)
        if done % tuning.sample_every == 0 or last:
            learned = processes.grouped({"": own.at(method, rollout.steps, weighed_at).mean(1)}, mine, rollout)[""]
            if processes.is_main:
                shown = {group: dataset[indices[group]] for group in processes.groups(rollout.pairs)}
                guards = frozenset(reward_name(reward) for reward in config.rewards if reward.role == "guard")
                observer.on_groups(done, Groups.of(shown, pictures, scores, credit, learned, guards))
            try:
                with averaged.applied():
                    record |= observer.on_sample(done)
            except RewardError:  # which all processes hear of
                keep()
                raise
        stopping.forbid()
        if processes.is_main:
            append_record(run / "metrics.jsonl", record)
            observer.on_iteration(record)
        if done % tuning.checkpoint_every == 0 or last:
            save(done)
        processes.wait()
    averaged.apply()


def resume(run: Path, policy: Policy, optimizer: Optimizer, averaged: MovingAverage | None = None) -> int:
    """Restore the newest whole checkpoint of the run, if any; returns the number of iterations done."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    done = (
        0
        if checkpoint is None
        else load_checkpoint(checkpoint, policy, optimizer, averaged.tensors if averaged is not None else None)
    )
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        truncate_records(metrics, done)
    return done


def conditions_kept(config: Config) -> int:
    """Of how many pairs a process keeps the conditions in memory: where they are on disk, of one iteration's."""
    return config.rollout.pairs if config.policy.conditions is not None else _CONDITIONS_KEPT


class _Encoder:
    """Conditions of a pair, encoded once as long as it stays among the newest ones."""

    def __init__(self, policy: Policy, size: int) -> None:
        self._policy, self._size = policy, size
        self._kept: OrderedDict[str, Conditions] = OrderedDict()

    def __call__(self, pair: Pair) -> Conditions:
        if pair.key not in self._kept:
            self._kept[pair.key] = self._policy.encode(pair.prompt, pair.references)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return self._kept[pair.key]


def _learning_rate(config: TrainConfig, iteration: int) -> float:
    """The rate of an iteration, counted from 0: a function of it alone, so that a resumed run goes on alike."""
    return config.learning_rate * (1 - iteration / config.iterations if config.schedule == "linear" else 1)
