"""Gradient of AWM at each noise level of the base model: `python -m experiments.study.levels`."""

from __future__ import annotations

from pathlib import Path

import torch

from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.method import at_places, awm_loss, noised
from customized_grpo.policies import build_policy
from customized_grpo.protocols import ROLES
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.noise import normal

SCALES = ("none", "level", "error", "x0")


def main() -> None:
    """Print, for the middle of each step, the norm of each role's mean gradient, by scale."""
    config = load_config(None, ["method.objective=awm", "data.seed=7", "train.trackers=[]"])
    policy = build_policy(config.policy)
    terms, dataset = reward_terms(config.rewards, policy.device), open_dataset(config.data)
    trainer = CustomizedGRPOTrainer(policy, terms, dataset, None, config, Path())
    rollouts = trainer.sample(trainer.make_batch())
    credit = trainer.compute_advantages(trainer.compute_rewards(rollouts)).credit
    weights = list(policy.trainable().values())
    (part,) = rollouts.trajectories
    print("sigma", "error", *(f"{scale}/{role}" for scale in SCALES for role in ROLES))
    for step in range(config.rollout.steps - 1):
        sigma = at_places(part.sigmas, torch.full((len(part),), step + 0.5))
        noise = torch.stack([normal(tuple(part.clean.shape[1:]), "levels", step, i) for i in range(len(part))])
        latents, target = noised(part.clean, noise, sigma), noise - part.clean
        velocity = policy.velocity(latents, sigma, part.conditions.select(part.condition_rows))
        norms = []
        for scale in SCALES:
            for role in ROLES:
                advantages = credit.advantages[role].flatten()[part.images].clamp(-1, 1)
                loss = awm_loss(velocity=velocity, target=target, sigma=sigma, advantages=advantages, scale=scale)  # type: ignore[arg-type]
                found = torch.autograd.grad(loss.mean(), weights, retain_graph=True, materialize_grads=True)
                norms.append(torch.cat([gradient.flatten() for gradient in found]).norm())
        error = (velocity.detach() - target).square().mean()
        print(f"{float(sigma[0]):.2f}", f"{float(error):.3f}", *(f"{float(norm):.4f}" for norm in norms))


if __name__ == "__main__":
    main()
