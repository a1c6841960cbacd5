"""Customized-GRPO (arXiv 2510.18263): `CustomizedGRPOTrainer.train_step` is one iteration, top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.protocols import ROLES, Conditions, Pair, PairDataset, Policy
from customized_grpo.rewards import RewardError
from customized_grpo.rewards.cache import PairCache
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.assembly import assemble
from customized_grpo.trainer.balance import Balance
from customized_grpo.trainer.base import BaseTrainer
from customized_grpo.trainer.callbacks import TrainerCallback
from customized_grpo.trainer.conditioning import conditions_cached
from customized_grpo.trainer.credit import Credit, assign_credit, method_at, steps_to_weigh_at
from customized_grpo.trainer.divergence import check_drift, check_loss, check_skipped
from customized_grpo.trainer.forward import ForwardUpdater
from customized_grpo.trainer.groups import Groups, group_diversity
from customized_grpo.trainer.grpo import GRPOUpdater
from customized_grpo.trainer.memory import BatchSize, measure_sampling
from customized_grpo.trainer.optimizer import learning_rate
from customized_grpo.trainer.order import image_numbers, images_of_updates, pairs_of_iteration
from customized_grpo.trainer.rollout import Trajectories, noise_levels, sample_groups
from customized_grpo.trainer.scoring import CONSTANT, Scoring, constant_rewards, why_stop
from customized_grpo.trainer.update import Updater, mean_of_updates
from customized_grpo.trainer.validation import Validation

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Images that this process samples in one iteration.

    `groups` are the dataset indices of all processes' groups, `numbers` those of this process's images among all
    groups * G. In their order are the images' `pairs`, `keys` (pair key, number within the pair), `conditions` (one row
    each) and trained steps `trained` (images, S), or places of trained noise levels. `stochastic` are the stochastic
    denoising steps.
    """

    iteration: int
    groups: list[int]
    numbers: list[int]
    pairs: list[Pair]
    keys: list[tuple[str, int]]
    conditions: list[Conditions]
    stochastic: range
    trained: Tensor


@dataclass(frozen=True)
class Rollouts:
    """Sampled images of a batch: `images` (3, H, W) each in [0, 1] in the batch's order, and their scores under way.

    `trajectories` are in the order of sampling, which `order` maps to the batch's order.
    """

    batch: Batch
    trajectories: list[Trajectories]
    images: list[Tensor]
    order: Tensor
    scoring: Scoring


@dataclass(frozen=True)
class Scores:
    """Scores (groups, G) of all processes' images by reward name; NaN where missing."""

    batch: Batch
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Advantages:
    """Advantages by role of all images (`credit`), and of this process's trained steps, `trained` (images, S).

    With gradient surgery `trained` is (images, S, 2), by role. `mean` (images,) is the mean over trained steps,
    `chosen` (images,) marks the images to train.
    """

    credit: Credit
    trained: Tensor
    mean: Tensor
    chosen: Tensor
    metrics: dict[str, float]


class CustomizedGRPOTrainer(BaseTrainer):
    """Train a policy by Customized-GRPO: GRPO with two reward roles, SARS and TDW.

    Args:
        policy: The generator to train; loaded as `args.policy` describes it if not given.
        rewards: Rewards by role: `{"identity": [...], "prompt": [...]}`, and optionally "guard". Each is a reward model
            of `customized_grpo.rewards`, any callable, or a tuple of either and its weight. Built as `args.rewards`
            describes them if not given.
        train_dataset: Pairs of reference images and a prompt; opened as `args.data` describes them if not given.
        eval_dataset: Held-out pairs that are generated and scored before, during and after training. Without them
            nothing is evaluated.
        args: All settings; the defaults if not given.
        output_dir: Folder of the run; that of `args`, or a new folder in `runs`, if not given.
        validation_dataset: Pairs on which gains are measured, for `method.weighting` constrained or adaptive; opened as
            `args.validation` describes them if not given, by default the training pairs.
        monitors: Rewards by role that only score evaluations; of roles "identity", "prompt" and "guard".
        callbacks: Called at the events of `TrainerCallback`, after the default ones (moving average, metrics.jsonl,
            progress, trackers) and before checkpoints. One of a default's class replaces it.
        accelerator: This process among those that a launcher started; made if not given.

    Raises:
        ConfigError: There are more processes than groups or images, or a setting does not go with the launcher.
        RewardError, DataError, ModelError: A part cannot be used; one line with the remedy.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        rewards: Mapping[str, object] | Sequence[RewardTerm] | None = None,
        train_dataset: PairDataset | None = None,
        eval_dataset: PairDataset | None = None,
        args: Config | None = None,
        output_dir: str | Path | None = None,
        *,
        validation_dataset: PairDataset | None = None,
        monitors: Mapping[str, object] | Sequence[RewardTerm] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        accelerator: Accelerator | None = None,
    ) -> None:
        parts = assemble(
            policy,
            rewards,
            train_dataset,
            eval_dataset,
            args or Config(),
            output_dir,
            validation_dataset,
            monitors,
            callbacks,
            accelerator,
        )
        super().__init__(parts)
        config, rollout = self.config, self.config.rollout
        self.sigmas = noise_levels(self.policy, rollout.steps, rollout.shift)
        # The objective: GRPO's on trajectories, or one on noised copies of sampled images.
        make = GRPOUpdater if config.method.objective == "grpo" else ForwardUpdater
        self._updater: Updater = make(
            self.policy,
            self.optimizer,
            config,
            self.processes,
            before_step=lambda: self._stopping.forbid(),
            after_step=lambda: self._fire("on_optimizer_step"),
        )
        self._rollout_size = BatchSize("rollout.batch_size", rollout.batch_size, recovers=not self.optimizer.together)
        self._conditions: PairCache[Conditions] = PairCache(conditions_cached(config))
        self._balancing = self._make_balancing()
        self.callbacks[:0] = [*self._updater.callbacks(), *(self._balancing or ())]
        self._early: list[dict[str, Tensor]] = []

    def train_step(self) -> dict[str, float]:
        """One iteration: sample groups, score them, compute advantages, update the policy. Returns its metrics."""
        began = time.perf_counter()
        self._profiler.totals.clear()
        batch = self.make_batch()
        rollouts = self.sample(batch)
        scores = self.compute_rewards(rollouts)
        advantages = self.compute_advantages(scores)
        metrics = advantages.metrics | self.update(rollouts, advantages)
        metrics |= self._describe_images(rollouts, scores, advantages)
        return metrics | self._seconds(time.perf_counter() - began, len(batch.numbers))

    def make_batch(self) -> Batch:
        """Choose the iteration's pairs and this process's images, and encode their conditioning."""
        rollout, seed, iteration = self.config.rollout, self.config.seed, self.iteration
        groups = pairs_of_iteration(len(self.train_dataset), rollout.pairs, seed, iteration)
        numbers = self.processes.images(rollout)
        owners = [number // rollout.group_size for number in numbers]
        pair_of = {group: self.train_dataset[groups[group]] for group in sorted(set(owners))}
        pairs = [pair_of[group] for group in owners]
        in_pair = image_numbers(groups, numbers, rollout.group_size)
        keys = [(pair.key, number) for pair, number in zip(pairs, in_pair, strict=True)]
        with self._profiler("encode"):
            conditions = self.encode(pairs)
        stochastic = self._updater.stochastic(seed, iteration)
        trained = self._updater.trained(stochastic, seed, iteration, keys)
        return Batch(iteration, groups, numbers, pairs, keys, conditions, stochastic, trained)

    def encode(self, pairs: Sequence[Pair]) -> list[Conditions]:
        """Return each pair's conditioning, one row; encoded once as long as the cache holds it."""
        return self._conditions.of(pairs, lambda pair: self.policy.encode(pair.prompt, pair.references))

    def sample(self, batch: Batch) -> Rollouts:
        """Sample every image of the batch by the objective's steps, decode it, and submit it for scoring."""
        self._measure_sizes(batch)
        rollout = self.config.rollout
        overlap = self.policy.device.type != "cpu" if rollout.overlap is None else rollout.overlap
        seed = self.config.seed, "rewards", batch.iteration, batch.numbers[0]
        scoring = Scoring([term.reward for term in self.terms], overlap=overlap, seed=seed)
        trajectories: list[Trajectories] = []
        images: list[Tensor] = []
        sampled = sample_groups(
            self.policy,
            batch.conditions,
            batch.keys,
            rollout,
            batch.stochastic,
            seed=self.config.seed,
            iteration=batch.iteration,
            trained=self._updater.stored(batch.trained),
            means=self.config.train.ratio == "guard",
            size=self._rollout_size,
            rounds=self._updater.rounds,
        )
        try:
            while True:
                with self._profiler("sample"):
                    part = next(sampled, None)
                if part is None:
                    break
                trajectories.append(part)
                with self._profiler("decode"):
                    images.append(self._decode(part.clean))
                scoring.submit(images[-1], [batch.pairs[image] for image in part.images.tolist()])
        except BaseException:
            scoring.close()
            raise
        self._updater.on_policy = True
        order = torch.cat([part.images for part in trajectories]).argsort()
        together = [image for part in images for image in part]
        return Rollouts(batch, trajectories, [together[i] for i in order.tolist()], order, scoring)

    def compute_rewards(self, rollouts: Rollouts) -> Scores:
        """Return every reward's scores of all processes' images.

        Raises:
            RewardError: A reward failed, or more scores are missing than `train.max_missing` allows.
        """
        batch = rollouts.batch
        with self._profiler("score"):
            parts = rollouts.scoring.results()
        own = {name: torch.cat([part.scores[name] for part in parts])[rollouts.order] for name in parts[0].scores}
        values = self.processes.grouped(own, batch.numbers, self.config.rollout)
        self._check_variation(batch.iteration, values)
        counted = torch.stack([own[term.name] for term in self.terms if term.weight > 0])
        reason = why_stop(
            missing=int((~counted.isfinite().all(0)).sum()),
            images=len(batch.numbers),
            failure=next((part.failure for part in parts if part.failure is not None), None),
            limit=self.config.train.max_missing,
            reduce=self.processes.sum,
            overflowed=sum(not bool(image.isfinite().all()) for image in rollouts.images),
        )
        if reason is not None:
            raise RewardError(
                f"{reason} (in iteration {batch.iteration + 1}; earlier ones are saved: --resume {self.output_dir})"
            )
        return Scores(batch, values)

    def compute_advantages(self, scores: Scores) -> Advantages:
        """Group-relative advantages per role, shaped by synergy (SARS) and weighted by denoising step (TDW)."""
        batch, steps = scores.batch, self.config.rollout.steps
        method = method_at(self.config.method, batch.iteration, self.iterations)
        credit, metrics = assign_credit(scores.values, self.terms, method)
        if self._balancing is not None:
            balance, validation = self._balancing
            with self._profiler("validate"):
                gains = validation.measure(batch.iteration)
            spreads = torch.tensor([metrics[f"{role}/std"] for role in ROLES])
            method, weights = balance.weight(method, gains, spreads)
            metrics |= weights
        own = credit.of(torch.tensor(batch.numbers))
        weights_at = steps_to_weigh_at(method.weighting, batch.trained, self.config.seed, batch.iteration, batch.keys)
        trained = own.objectives_at(method, steps, weights_at)
        mean = own.at(method, steps, weights_at).mean(1)
        chosen = credit.chosen(method, steps, self.config.train.image_fraction).flatten()[batch.numbers]
        return Advantages(credit, trained, mean, chosen, metrics)

    def update(self, rollouts: Rollouts, advantages: Advantages) -> dict[str, float]:
        """Take the iteration's optimizer steps on the objective's loss. Returns their metrics.

        Raises:
            DivergenceError: A loss is not finite, too many updates in a row had no finite gradient, or the policy has
                drifted too far.
        """
        tuning, rollout, batch = self.config.train, self.config.rollout, rollouts.batch
        rate = learning_rate(tuning, batch.iteration)
        self.optimizer.set_rate(rate)
        place = {number: i for i, number in enumerate(batch.numbers)}
        excluded = set((~advantages.chosen).nonzero().flatten().tolist())
        total = rollout.pairs * rollout.group_size
        all_updates = tuning.iterations * tuning.updates
        updates = []
        with self._profiler("update"):
            for numbers in images_of_updates(total, tuning.updates, self.config.seed, batch.iteration):
                rows = {place[number] for number in numbers if number in place} - excluded
                items = [
                    self._updater.items(part, rows, batch.trained, advantages.trained) for part in rollouts.trajectories
                ]
                idle = self._updater.idle(rollouts.trajectories)
                updates.append(self._updater.update(items, idle))
                check_loss(updates[-1]["loss"], batch.iteration + 1, self.output_dir)
                check_skipped(
                    self._updater.skipped, tuning.max_skipped, all_updates, batch.iteration + 1, self.output_dir
                )
        with self._profiler("probe"):
            probed, count = self._updater.probe(rollouts.trajectories, batch.trained)
        metrics = self.processes.mean(probed, count) | mean_of_updates(updates)
        check_drift(metrics["drift"], tuning.max_drift, batch.iteration + 1, self.output_dir)
        return metrics | {"learning_rate": rate}

    def _make_balancing(self) -> tuple[Balance, Validation] | None:
        """Return the controller of weights that follow the gains, and the measurement of these; None for others."""
        if self.validation_dataset is None:
            return None
        return Balance(self.config.method), Validation(
            self.policy,
            self.validation_dataset,
            self.terms,
            self.config,
            encode=self.encode,
            size=self._rollout_size,
            rounds=self._updater.rounds,
            processes=self.processes,
        )

    def _describe_images(self, rollouts: Rollouts, scores: Scores, advantages: Advantages) -> dict[str, float]:
        """Return metrics of the images; store the iteration's groups for callbacks if an evaluation is due."""
        batch, rollout = rollouts.batch, self.config.rollout
        images = self.processes.whole_groups(rollouts.images, batch.numbers, rollout)
        self._groups = None
        if self._evaluation_due(done=batch.iteration + 1):
            learned = self.processes.grouped({"": advantages.mean}, batch.numbers, rollout)[""]
            if self.is_main:
                own = list(self.processes.groups(rollout.pairs))
                numbers = torch.arange(learned.numel()).view_as(learned)[own]
                self._groups = Groups(
                    [self.train_dataset[batch.groups[group]] for group in own],
                    [group.cpu() for group in images],
                    {name: values[own] for name, values in scores.values.items()},
                    advantages.credit.of(numbers),
                    learned[own],
                    frozenset(term.name for term in self.terms if term.role == "guard"),
                )
        return self.processes.mean({"diversity": group_diversity(images)}, len(images) * rollout.group_size)

    def _check_variation(self, iteration: int, scores: Mapping[str, Tensor]) -> None:
        """Warn once, after the first iterations, of rewards that do not depend on the image."""
        if not self.is_main or iteration >= CONSTANT:
            return
        trained = {term.name for term in self.terms if term.role != "guard" and term.weight > 0}
        self._early.append({name: values for name, values in scores.items() if name in trained})
        for name in constant_rewards(self._early) if len(self._early) == CONSTANT else ():
            _LOG.warning(
                "reward %r gave all images of the first %d iterations the same score, so nothing is learned from it; "
                "check it with cgrpo score",
                *(name, CONSTANT),
            )

    def _measure_sizes(self, batch: Batch) -> None:
        """Measure what one image and one trained step need, where batch sizes are "auto" and not yet measured."""
        if not (self._rollout_size.auto or self._updater.size.auto):
            return
        count = len(batch.numbers)
        most = max(batch.conditions, key=lambda one: sum(row.numel() for row in one.rows.values()))
        measure_sampling(self._rollout_size, self.policy, most, count, self.processes.least)
        self._updater.measure_size(most, self.sigmas, count * batch.trained.shape[1])

    def _decode(self, clean: Tensor) -> Tensor:
        """Decode clean latents to images (B, 3, H, W), in parts if memory runs out."""
        return torch.cat(list(self._rollout_size.run(len(clean), lambda part: self.policy.decode(clean[part]))))

    def _seconds(self, total: float, images: int) -> dict[str, float]:
        spent = self._profiler.totals
        seconds = {
            "seconds/sampling": spent.get("sample", 0.0) + spent.get("decode", 0.0),
            "seconds/scoring": spent.get("score", 0.0),
            **({} if self._balancing is None else {"seconds/validating": spent.get("validate", 0.0)}),
            "seconds/updating": spent.get("update", 0.0) + spent.get("probe", 0.0),
            "seconds/total": total,
        }
        return self.processes.mean(seconds, images)
