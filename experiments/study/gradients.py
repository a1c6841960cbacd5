"""Measure whether identity and prompt pull the policy the same way, and how much signal each denoising step has.

At the present policy, the surrogate's gradient for an advantage A at step t is that of the mean of
A * log-density(step t): one for A_id, one for A_p, and, shaped by SARS, one for A_id + B and one for A_p + B.
Their cosines show whether the two agree over so many batches, noise included: both weight the same samples, so
advantages that disagree sample by sample already oppose them. The agreement of one role's gradients of independent
batches shows how much of them is signal. The agreement of one role's with the other's of other batches shows, without
the noise that they share, whether following one raises the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import base_config
from customized_grpo.method import SAMPLERS, SHAPINGS, guarded_loss
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.grpo import Items, replay
from customized_grpo.trainer.rollout import Trajectories, noise_levels
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.noise import generator
from experiments.study.results import difference

_RESAMPLES = 2000
Statistic = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps how often each batch was taken (resamples, batches), and the inner products (batches, batches) of two gradients,
of the first alone and of the second alone, to a value (resamples,)."""


class AtStep(BaseModel):
    """A value at one denoising step with its 95% bootstrap interval over batches."""

    step: int
    sigma: float
    value: float
    low: float
    high: float


class Strength(AtStep):
    """Signal of a role's gradient at one step.

    `value` is the squared mean of the gradient over the variance of one batch; it is unbiased, so it may be below 0
    without a signal. `weight` is the best weight of :func:`learned_weights` for `table` weighting.
    """

    weight: float


class Evidence(BaseModel):
    """Measured gradients by step: cosines and agreements ("naive" and "shaped"), and each role's strengths.

    An agreement is the inner product of the two means over the standard deviations of one batch, unbiased.

    Args:
        settings: Settings of the measurement except training and evaluation.
        batches: Number of batches.
        at: Run whose policy was measured; empty for the base.
    """

    cosines: dict[str, list[AtStep]]
    agreements: dict[str, list[AtStep]]
    strengths: dict[str, list[Strength]]
    settings: dict[str, Any]
    batches: int
    at: str = ""


def gradient_evidence(
    config: Config,
    policy: Policy,
    dataset: PairDataset,
    rewards: Sequence[RewardTerm],
    batches: int,
    progress: Callable[[], object] = lambda: None,
) -> Evidence:
    """Measure the two roles' gradients at the present policy.

    A batch is the groups of one iteration, with the same noise as in training. The shaping is SARS with
    `config.method.gamma`, whatever is configured. Needs memory for 3 gradients of each stochastic step and batch.

    Raises:
        ValueError: There are fewer than two batches, which give no interval.
    """
    if batches < 2:
        raise ValueError(f"gradient_batches: {batches} gives no interval; give 2 or more, or 0 for none")
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    gathered = []
    for number in range(batches):
        gathered.append(_gradients(config, policy, dataset, rewards, number))
        progress()
    identity, prompt, bonus = torch.stack(gathered, 1)  # each (batches, steps, parameters)
    pulls = {"naive": (identity, prompt), "shaped": (identity + bonus, prompt + bonus)}
    scales = _scales(config, sigmas)
    return Evidence(
        cosines={name: _by_step(_cosine, *pair, sigmas) for name, pair in pulls.items()},
        agreements={name: _by_step(_agreement, *pair, sigmas) for name, pair in pulls.items()},
        strengths={
            "identity": _strengths(identity, sigmas, scales),
            "prompt": _strengths(prompt, sigmas, scales),
        },
        settings=_measured(config).model_dump(mode="json"),
        batches=batches,
    )


def inner_products(gradients: Tensor) -> Tensor:
    """Return inner products (batches, batches, steps, steps), float64, of gradients (batches, steps, parameters)."""
    exact = gradients.double()
    return torch.einsum("asp,btp->abst", exact, exact)


def learned_weights(inner: Tensor, scales: Tensor) -> Tensor:
    """Compute the weights of steps that raise one role's expected reward most for the noise of the update.

    To first order an update along ``sum_t w(t) scale(t) g(t)`` raises it by the inner product with
    ``sum_t E g(t)``. The noises of different steps are nearly uncorrelated, so the best w(t) is step t's share of that
    product over the noise's variance there. Negative weights become 0; the mean is 0.5, as with static weights 1:1.

    Args:
        inner: (batches, batches, steps, steps) from :func:`inner_products`, at least two batches.
        scales: (steps,) factors of each step's gradient in training, such as those of `train.ratio=guard`.

    Returns:
        (steps,) float32; 0.5 everywhere if no step has a signal.
    """
    n = len(inner)
    apart = (inner.sum((0, 1)) - inner.diagonal().sum(-1)) / (n * (n - 1))  # of the means, without bias
    noise = inner.diagonal().mean(-1).diagonal() - apart.diagonal()
    weights = (apart.sum(1) / (noise * scales.double()).clamp(min=1e-30)).clamp(min=0)
    mean = weights.mean()
    return (0.5 * weights / mean if mean > 0 else torch.full_like(weights, 0.5)).float()


def read_evidence(path: Path) -> Evidence:
    """Read gradients.json. Raises ConfigError if a part is missing."""
    try:
        return Evidence.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        missing = ", ".join(sorted({str(one["loc"][0]) for one in error.errors() if one["loc"]})) or "its fields"
        raise ConfigError(
            f"{path}: of an earlier version, {missing} cannot be read; remove it, and run the study to measure again"
        ) from error


def other_than(evidence: Evidence, config: Config, batches: int, at: str = "") -> str | None:
    """Return the first setting in which the evidence differs from this configuration; "policy" for another run."""
    if evidence.at != at:
        return "policy"
    if evidence.batches != batches:
        return "gradient_batches"
    now = _measured(config)
    ratio = evidence.settings.get("train", {}).get("ratio", now.train.ratio)  # the one setting of training that matters
    stored = evidence.settings | {"train": now.train.model_dump(mode="json") | {"ratio": ratio}}
    return difference(stored, now)


def _measured(config: Config) -> Config:
    """Return the settings with defaults for those that do not change the gradients."""
    usual = base_config(config.policy)
    train = usual.train.model_copy(update={"ratio": config.train.ratio})  # which weights the steps
    return config.model_copy(update={"train": train, "evaluation": usual.evaluation})


def _gradients(
    config: Config, policy: Policy, dataset: PairDataset, rewards: Sequence[RewardTerm], number: int
) -> Tensor:
    """Return gradients (3, steps, parameters) of one batch for A_id, A_p and the bonus alone, on the CPU."""
    rollout = config.rollout.model_copy(update={"window": None})  # all steps, also where training moves a window
    train = config.train.model_copy(update={"trained_fraction": 1.0})
    config = config.model_copy(update={"rollout": rollout, "train": train})
    trainer = CustomizedGRPOTrainer(policy, rewards, dataset, None, config, Path())
    trainer.iteration = number
    rollouts = trainer.sample(trainer.make_batch())
    credit = trainer.compute_advantages(trainer.compute_rewards(rollouts)).credit
    identity, prompt = credit.advantages["identity"], credit.advantages["prompt"]
    bonus = SHAPINGS["sars"](identity, prompt, config.method.gamma)
    kinds = torch.stack([identity.flatten(), prompt.flatten(), bonus.flatten()])
    steps = rollouts.batch.stochastic
    return torch.stack([_at_step(config, policy, rollouts.trajectories, kinds, t) for t in steps], 1)


def _at_step(config: Config, policy: Policy, trajectories: list[Trajectories], kinds: Tensor, t: int) -> Tensor:
    """Return gradients (3, parameters) at step t of the mean of each kind's advantage times the log-density."""
    weights = list(policy.trainable().values())
    total = torch.zeros(len(kinds), sum(weight.numel() for weight in weights))
    count, size = kinds.shape[1], config.train.batch_size
    step = SAMPLERS[config.rollout.sampler]
    for batch in trajectories:
        rows = torch.arange(len(batch))
        items = Items.of(batch, rows, torch.full_like(rows, t), torch.zeros(len(rows)))
        most = len(items) if size == "auto" else size
        for micro, images in zip(items.split(most), batch.images.split(most), strict=True):
            _, _, log_density = replay(policy, micro, step, config.rollout.eta)
            for k, advantages in enumerate(kinds):
                given = advantages[images].to(log_density.device)
                # An image that failed has no advantage, and its density may be NaN.
                gained = (given * log_density)[given != 0].sum() / count
                parts = torch.autograd.grad(gained, weights, retain_graph=k + 1 < len(kinds), materialize_grads=True)
                total[k] += torch.cat([part.flatten().float().cpu() for part in parts])
    return total


def _by_step(statistic: Statistic, one: Tensor, other: Tensor, sigmas: Tensor) -> list[AtStep]:
    """Estimate a statistic of two gradients (batches, steps, parameters) at each step, with its 95% interval."""
    batches = len(one)
    taken = torch.randint(batches, (_RESAMPLES, batches), generator=generator("gradient cosines", batches))
    resampled = torch.nn.functional.one_hot(taken, batches).sum(1).double()
    each, bounds = torch.ones(1, batches, dtype=torch.float64), torch.tensor([0.025, 0.975], dtype=torch.float64)
    found = []
    for t in range(one.shape[1]):
        first, second = one[:, t].double(), other[:, t].double()
        inner = first @ second.T, first @ first.T, second @ second.T
        low, high = torch.quantile(statistic(resampled, *inner), bounds).tolist()
        value = float(statistic(each, *inner))
        found.append(AtStep(step=t, sigma=float(sigmas[t]), value=value, low=low, high=high))
    return found


def _cosine(counts: Tensor, inner: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compute the cosine of the sums over batches of two gradients."""
    between, one, other = (torch.einsum("rb,bc,rc->r", counts, part, counts) for part in (inner, first, second))
    return between / (one * other).sqrt().clamp(min=1e-30)


def _agreement(counts: Tensor, inner: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compute the inner product of two means over the noise; of a gradient with itself, its signal over its noise."""
    return _apart(counts, inner) / (_noise(counts, first) * _noise(counts, second)).sqrt()


def _strengths(gradients: Tensor, sigmas: Tensor, scales: Tensor) -> list[Strength]:
    """Compute the signal of one role's gradients (batches, steps, parameters) at each step."""
    weights = learned_weights(inner_products(gradients), scales).tolist()
    signals = _by_step(_agreement, gradients, gradients, sigmas)
    return [Strength(weight=weight, **dict(signal)) for signal, weight in zip(signals, weights, strict=True)]


def _apart(counts: Tensor, inner: Tensor) -> Tensor:
    """Estimate the inner product of two means from pairs of different batches; a batch always agrees with itself."""
    between = torch.einsum("rb,bc,rc->r", counts, inner, counts) - counts.square() @ inner.diagonal()
    return between / (counts.sum(1).square() - counts.square().sum(1)).clamp(min=1)


def _noise(counts: Tensor, inner: Tensor) -> Tensor:
    """Estimate the variance of one batch about its mean."""
    return (counts @ inner.diagonal() / counts.sum(1) - _apart(counts, inner)).clamp(min=1e-30)


def _scales(config: Config, sigmas: Tensor) -> Tensor:
    """Return the factors (steps,) of the gradient of the log-density at each stochastic step in training."""
    steps = torch.arange(config.rollout.steps - 1)
    if config.train.ratio == "plain":
        return torch.ones(len(steps))
    sigma, sigma_next = sigmas[steps].cpu(), sigmas[steps + 1].cpu()
    still = torch.zeros(len(steps), 1)
    taken = SAMPLERS[config.rollout.sampler](
        still, still, sigma, sigma_next, eta=config.rollout.eta, next_sample=still, sigma_max=sigmas[1].cpu()
    )
    return guarded_loss(taken.std, sigma, sigma_next)
