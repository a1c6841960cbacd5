"""Do identity and prompt pull the policy the same way, and at which denoising steps does each pull at all?

At the policy as it is, the surrogate's gradient for an advantage A at step t is that of the mean of
A * log-density(step t): one for A_id, one for A_p, and, shaped by SARS, one for A_id + B and one for A_p + B.
Their cosines say whether the two pull alike over so many batches, noise included: both weigh the same draws, so that
advantages which disagree sample by sample already set them at odds. How far a role's gradients of independent batches
agree with each other says how much of them is signal: a step where they do not teaches that role nothing, and disturbs
the other one. How far one role's agree with the other role's of other batches says, without what they share by chance,
whether to follow one lifts the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import base_config
from customized_grpo.method import SAMPLERS, SHAPINGS, guarded_loss
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.rollout import Trajectories, noise_levels
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.trainer.update import Items, replay
from customized_grpo.utils.noise import generator
from customized_grpo.utils.records import write_json
from experiments.study.results import difference

_RESAMPLES = 2000


@dataclass(frozen=True)
class AtStep:
    """What was measured at one denoising step, and its 95% bootstrap interval over batches."""

    step: int
    sigma: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Strength(AtStep):
    """How much of a role's gradient at one denoising step is signal.

    `value`: the squared mean of the gradient over the variance about it, of one batch; unbiased, so that it may fall
    below 0 where there is none. `weight`: what `table` weighting should give that role at this step, of
    :func:`learned_weights`.
    """

    weight: float


@dataclass(frozen=True)
class Evidence:
    """Step by step, of the roles' gradients, "naive" and "shaped": `cosines`, and `agreements`, the inner product of
    their means over the deviations about them, of one batch and unbiased as a strength is; and each role's `strengths`.

    `settings` are those that it was measured with, but for training and evaluation; none where none were kept. `at` is
    the run at whose policy it was measured; empty: the base.
    """

    cosines: dict[str, list[AtStep]]
    agreements: dict[str, list[AtStep]]
    strengths: dict[str, list[Strength]]
    settings: dict[str, Any] = field(default_factory=dict)
    batches: int = 0
    at: str = ""


def gradient_evidence(
    config: Config,
    policy: Policy,
    dataset: PairDataset,
    rewards: Sequence[RewardTerm],
    batches: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Evidence:
    """Of the identity's and the prompt's gradient at the policy as it stands.

    A batch is what one iteration draws: `config.rollout.pairs` groups, by the same noise as training's. The shaping
    is SARS of `config.method.gamma`, whatever the configured one. Needs memory for 3 gradients of each stochastic
    step and batch. Raises ValueError below two batches, of which no interval can be told.
    """
    if batches < 2:
        raise ValueError(f"gradient_batches: {batches} gives no interval; give 2 or more, or 0 for none")
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    gathered = []
    for number in range(batches):
        gathered.append(_gradients(config, policy, dataset, rewards, sigmas, number))
        progress(number + 1)
    identity, prompt, bonus = torch.stack(gathered, 1)  # each (batches, steps, parameters)
    pulls = {"naive": (identity, prompt), "shaped": (identity + bonus, prompt + bonus)}
    steps = range(identity.shape[1])
    cosines = {
        name: [_cosine(t, float(sigmas[t]), one[:, t], other[:, t]) for t in steps]
        for name, (one, other) in pulls.items()
    }
    agreements = {name: _agreements(one, other, sigmas) for name, (one, other) in pulls.items()}
    scales = _scales(config, sigmas)
    roles = {"identity": identity, "prompt": prompt}
    strengths = {role: _strengths(found, sigmas, scales) for role, found in roles.items()}
    return Evidence(cosines, agreements, strengths, _measured(config).model_dump(mode="json"), batches)


def inner_products(gradients: Tensor) -> Tensor:
    """Of one role's gradients (batches, steps, parameters): (batches, batches, steps, steps) float64."""
    exact = gradients.double()
    return torch.einsum("asp,btp->abst", exact, exact)


def learned_weights(inner: Tensor, scales: Tensor) -> Tensor:
    """The weights (steps,) by which one role's expected reward rises most for the noise of the update.

    To first order an update along ``sum_t w(t) scale(t) g(t)`` raises it by the inner product with
    ``sum_t E g(t)``. The noises of different steps are all but uncorrelated, so that the best w(t) is that product's
    share of step t over the noise's variance there. Below 0 it is 0; the mean is 0.5, as that of static weights of 1:1.

    Args:
        inner: (batches, batches, steps, steps) from :func:`inner_products`, two batches at least.
        scales: (steps,) by which training multiplies each step's gradient, as that of `train.ratio=guard` does.

    Returns:
        (steps,) float32; 0.5 everywhere where no step has a signal.
    """
    n = len(inner)
    apart = (inner.sum((0, 1)) - inner.diagonal().sum(-1)) / (n * (n - 1))  # of the means, without bias
    noise = inner.diagonal().mean(-1).diagonal() - apart.diagonal()
    weights = (apart.sum(1) / (noise * scales.double()).clamp(min=1e-30)).clamp(min=0)
    mean = weights.mean()
    return (0.5 * weights / mean if mean > 0 else torch.full_like(weights, 0.5)).float()


def save_evidence(path: Path, evidence: Evidence) -> None:
    write_json(
        path,
        {
            "cosines": {name: [vars(at) for at in curve] for name, curve in evidence.cosines.items()},
            "agreements": {name: [vars(at) for at in curve] for name, curve in evidence.agreements.items()},
            "strengths": {role: [vars(at) for at in curve] for role, curve in evidence.strengths.items()},
            "settings": evidence.settings,
            "batches": evidence.batches,
            "at": evidence.at,
        },
    )


def read_evidence(path: Path) -> Evidence:
    kept = json.loads(path.read_text(encoding="utf-8"))
    if missing := {"cosines", "agreements", "strengths"} - kept.keys():
        what = ", ".join(sorted(missing))
        raise ConfigError(f"{path}: of an earlier version, without {what}; remove it, and the study measures anew")
    return Evidence(
        {name: [AtStep(**at) for at in curve] for name, curve in kept["cosines"].items()},
        {name: [AtStep(**at) for at in curve] for name, curve in kept["agreements"].items()},
        {name: [Strength(**at) for at in curve] for name, curve in kept["strengths"].items()},
        kept.get("settings", {}),
        kept.get("batches", 0),
        kept.get("at", ""),
    )


def other_than(evidence: Evidence, config: Config, batches: int, at: str = "") -> str | None:
    """The first setting in which the evidence is not of this configuration, or None; also where it kept none.

    "policy" where it was not measured at the run `at`.
    """
    if evidence.at != at:
        return "policy"
    if not evidence.settings:
        return None
    if evidence.batches != batches:
        return "gradient_batches"
    now = _measured(config)
    ratio = evidence.settings.get("train", {}).get("ratio", now.train.ratio)  # all of training that matters
    kept = evidence.settings | {"train": now.train.model_dump(mode="json") | {"ratio": ratio}}
    return difference(kept, now)


def _measured(config: Config) -> Config:
    """Without what gradients at the base do not depend on."""
    usual = base_config(config.policy)
    train = usual.train.model_copy(update={"ratio": config.train.ratio})  # which weighs the steps
    return config.model_copy(update={"train": train, "evaluation": usual.evaluation})


def _gradients(
    config: Config, policy: Policy, dataset: PairDataset, rewards: Sequence[RewardTerm], sigmas: Tensor, number: int
) -> Tensor:
    """Of one batch: (3, steps, parameters), for A_id, A_p and the bonus alone, on the CPU."""
    rollout = config.rollout.model_copy(update={"window": None})  # all steps, also where training moves a window
    whole = config.train.model_copy(update={"trained_fraction": 1.0})
    config = config.model_copy(update={"rollout": rollout, "train": whole})
    trainer = CustomizedGRPOTrainer(policy, rewards, dataset, None, config, Path())
    trainer.iteration = number
    rollouts = trainer.sample(trainer.make_batch())
    credit = trainer.compute_advantages(trainer.compute_rewards(rollouts)).credit
    steps = rollouts.batch.stochastic
    identity, prompt = credit.advantages["identity"], credit.advantages["prompt"]
    bonus = SHAPINGS["sars"](identity, prompt, config.method.gamma)
    kinds = torch.stack([identity.flatten(), prompt.flatten(), bonus.flatten()])
    return torch.stack([_at_step(config, policy, rollouts.trajectories, kinds, sigmas, t) for t in steps], 1)


def _at_step(
    config: Config, policy: Policy, drawn: list[Trajectories], kinds: Tensor, sigmas: Tensor, t: int
) -> Tensor:
    """(3, parameters) at step t: gradients of the mean of each kind's advantage times the log-density."""
    weights = list(policy.trainable().values())
    total = torch.zeros(len(kinds), sum(weight.numel() for weight in weights))
    count, size = kinds.shape[1], config.train.batch_size
    for batch in drawn:
        rows = torch.arange(len(batch))
        items = Items.of(batch, rows, torch.full_like(rows, t), torch.zeros(len(rows)), sigmas)
        start = 0
        for micro in items.split(len(items) if size == "auto" else size):
            step = SAMPLERS[config.rollout.sampler]
            _, _, log_density = replay(policy, micro, step, config.rollout.eta, sigmas[1])
            which = batch.images[start : start + len(micro)]
            start += len(micro)
            for k, advantages in enumerate(kinds):
                given = advantages[which].to(log_density.device)
                gained = (given * log_density)[
                    given != 0
                ].sum() / count  # an image that failed has none, and may be NaN
                parts = torch.autograd.grad(gained, weights, retain_graph=k + 1 < len(kinds), allow_unused=True)
                total[k] += torch.cat(
                    [
                        (torch.zeros_like(weight) if part is None else part).flatten().float().cpu()
                        for part, weight in zip(parts, weights, strict=True)
                    ]
                )
    return total


def _cosine(step: int, sigma: float, one: Tensor, other: Tensor) -> AtStep:
    """Of the sums over batches of two gradients (batches, parameters); resampled through their inner products."""
    n = len(one)
    inner = [a.double() @ b.double().T for a, b in ((one, other), (one, one), (other, other))]

    def of(counts: Tensor) -> Tensor:
        between, first, second = (torch.einsum("rb,bc,rc->r", counts, part, counts) for part in inner)
        return between / (first * second).sqrt().clamp(min=1e-30)

    return AtStep(step, sigma, *_told(of, n))


def _agreements(one: Tensor, other: Tensor, sigmas: Tensor) -> list[AtStep]:
    """Of two roles' gradients (batches, steps, parameters)."""
    found = []
    for t in range(one.shape[1]):
        first, second = one[:, t].double(), other[:, t].double()
        both, own = first @ second.T, (first @ first.T, second @ second.T)

        def of(counts: Tensor, both: Tensor = both, own: tuple[Tensor, Tensor] = own) -> Tensor:
            return _apart(counts, both) / (_noise(counts, own[0]) * _noise(counts, own[1])).sqrt()

        found.append(AtStep(t, float(sigmas[t]), *_told(of, len(both))))
    return found


def _strengths(gradients: Tensor, sigmas: Tensor, scales: Tensor) -> list[Strength]:
    """Of one role's gradients (batches, steps, parameters)."""
    products, found = inner_products(gradients), []
    n, weights = len(products), learned_weights(products, scales)
    for t in range(gradients.shape[1]):

        def of(counts: Tensor, inner: Tensor = products[:, :, t, t]) -> Tensor:
            return _apart(counts, inner) / _noise(counts, inner)

        found.append(Strength(t, float(sigmas[t]), *_told(of, n), float(weights[t])))
    return found


def _apart(counts: Tensor, inner: Tensor) -> Tensor:
    """The inner product of two means, of batches taken so often (resamples, batches), from their inner products.

    Pairs of different batches alone: a batch agrees with itself, whatever it holds.
    """
    between = torch.einsum("rb,bc,rc->r", counts, inner, counts) - counts.square() @ inner.diagonal()
    return between / (counts.sum(1).square() - counts.square().sum(1)).clamp(min=1)


def _noise(counts: Tensor, inner: Tensor) -> Tensor:
    """The variance of one batch about its mean, likewise."""
    return (counts @ inner.diagonal() / counts.sum(1) - _apart(counts, inner)).clamp(min=1e-30)


def _told(of: Callable[[Tensor], Tensor], batches: int) -> tuple[float, float, float]:
    """What `of` says of all batches, and its interval."""
    low, high = _interval(of, batches)
    return float(of(torch.ones(1, batches, dtype=torch.float64))), low, high


def _interval(of: Callable[[Tensor], Tensor], batches: int) -> tuple[float, float]:
    """95% of what `of` says of batches drawn with replacement: (resamples, batches), how often each of them came."""
    drawn = torch.randint(batches, (_RESAMPLES, batches), generator=generator("gradient cosines", batches))
    counts = torch.nn.functional.one_hot(drawn, batches).sum(1).double()
    low, high = torch.quantile(of(counts), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _scales(config: Config, sigmas: Tensor) -> Tensor:
    """By what training multiplies the gradient of the log-density at each stochastic step (steps,)."""
    steps = torch.arange(config.rollout.steps - 1)
    if config.train.ratio == "plain":
        return torch.ones(len(steps))
    sigma, sigma_next = sigmas[steps].cpu(), sigmas[steps + 1].cpu()
    still = torch.zeros(len(steps), 1)
    taken = SAMPLERS[config.rollout.sampler](
        still, still, sigma, sigma_next, eta=config.rollout.eta, next_sample=still, sigma_max=sigmas[1].cpu()
    )
    return guarded_loss(taken.std, sigma, sigma_next)
