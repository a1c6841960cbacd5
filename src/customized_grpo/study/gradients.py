"""Do identity and prompt pull the policy the same way? The cosine of their gradients, denoising step by step.

At the policy as it is, the surrogate's gradient for an advantage A at step t is that of the mean of
A * log-density(step t): one for A_id, one for A_p, and, shaped by SARS, one for A_id + B and one for A_p + B.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.method import SAMPLERS, SHAPINGS
from customized_grpo.noise import generator
from customized_grpo.protocols import PairDataset, Policy, Reward
from customized_grpo.records import write_json
from customized_grpo.training.credit import assign_credit
from customized_grpo.training.order import pairs_of_iteration
from customized_grpo.training.rollout import Trajectories, draw_images, noise_levels
from customized_grpo.training.scoring import score_drawn
from customized_grpo.training.update import Items, replay

_RESAMPLES = 2000


@dataclass(frozen=True)
class Cosine:
    """At one denoising step: the cosine over all batches, and its 95% bootstrap interval over batches."""

    step: int
    sigma: float
    value: float
    low: float
    high: float


def gradient_cosines(
    config: Config,
    policy: Policy,
    dataset: PairDataset,
    rewards: Sequence[Reward],
    batches: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Cosine]]:
    """Cosines of the identity's and the prompt's gradient, "naive" and "shaped", at the policy as it stands.

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
    return {
        name: [_cosine(t, float(sigmas[t]), one[:, t], other[:, t]) for t in range(one.shape[1])]
        for name, (one, other) in pulls.items()
    }


def save_cosines(path: Path, cosines: dict[str, list[Cosine]]) -> None:
    write_json(path, {name: [vars(cosine) for cosine in curve] for name, curve in cosines.items()})


def read_cosines(path: Path) -> dict[str, list[Cosine]]:
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {name: [Cosine(**cosine) for cosine in curve] for name, curve in kept.items()}


def _gradients(
    config: Config, policy: Policy, dataset: PairDataset, rewards: Sequence[Reward], sigmas: Tensor, number: int
) -> Tensor:
    """Of one batch: (3, steps, parameters), for A_id, A_p and the bonus alone, on the CPU."""
    rollout = config.rollout
    chosen = pairs_of_iteration(len(dataset), rollout.pairs, config.seed, number)
    pairs = [dataset[index] for index in chosen]
    images = [(pair, i) for pair in pairs for i in range(rollout.group_size)]
    encoded = {pair.key: policy.encode(pair.prompt, pair.references) for pair in pairs}
    conditions = [encoded[pair.key] for pair, _ in images]
    keys = [(pair.key, i) for pair, i in images]
    steps = range(rollout.steps - 1)  # all of them, also where training moves a window over them
    batches = draw_images(policy, conditions, keys, rollout, sigmas, steps, seed=config.seed, iteration=number)
    scored = score_drawn(policy, batches, rewards, [pair for pair, _ in images])
    if scored.failure is not None:
        raise scored.failure
    scores = {name: values.view(len(pairs), rollout.group_size) for name, values in scored.scores.items()}
    credit, _ = assign_credit(scores, config.rewards, config.method)
    identity, prompt = credit.advantages["identity"], credit.advantages["prompt"]
    bonus = SHAPINGS["sars"](identity, prompt, config.method.gamma)
    kinds = torch.stack([identity.flatten(), prompt.flatten(), bonus.flatten()])
    return torch.stack([_at_step(config, policy, scored.drawn, kinds, sigmas, t) for t in steps], 1)


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
                gained = (advantages[which].to(log_density.device) * log_density).sum() / count
                parts = torch.autograd.grad(gained, weights, retain_graph=k + 1 < len(kinds), allow_unused=True)
                total[k] += torch.cat(
                    [
                        (torch.zeros_like(weight) if part is None else part).flatten().float().cpu()
                        for part, weight in zip(parts, weights, strict=True)
                    ]
                )
    return total


def _cosine(step: int, sigma: float, one: Tensor, other: Tensor) -> Cosine:
    """Of the sums over batches of two gradients (batches, parameters); resampled through their inner products."""
    n = len(one)
    inner = [a.double() @ b.double().T for a, b in ((one, other), (one, one), (other, other))]

    def of(counts: Tensor) -> Tensor:
        between, first, second = (torch.einsum("rb,bc,rc->r", counts, part, counts) for part in inner)
        return between / (first * second).sqrt().clamp(min=1e-30)

    drawn = torch.randint(n, (_RESAMPLES, n), generator=generator("gradient cosines", n))
    counts = torch.nn.functional.one_hot(drawn, n).sum(1).double()
    low, high = torch.quantile(of(counts), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Cosine(step, sigma, float(of(torch.ones(1, n, dtype=torch.float64))), low, high)
