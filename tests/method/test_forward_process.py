"""AWM and DiffusionNFT: references in float64, gradients, supervised flow matching as a special case."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from customized_grpo.method import (
    at_places,
    awm_loss,
    matching_error,
    nft_loss,
    noised,
    register_objective,
    shaped_advantages,
    step_weights,
    velocity_distance,
)

SCALES = ("none", "level", "error", "x0")
SIGMA = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, -0.3, 0.0], dtype=torch.float64)


def numbers(*seeds: int) -> list[Tensor]:
    return [torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]


def error_by_hand(velocity: Tensor, target: Tensor, sigma: float, scale: str) -> float:
    """The error of one item, element by element in Python's own numbers."""
    errors = [a - b for a, b in zip(velocity.flatten().tolist(), target.flatten().tolist(), strict=True)]
    if scale == "x0":
        errors = [sigma * e for e in errors]
    squares, sizes = math.fsum(e * e for e in errors), math.fsum(abs(e) for e in errors)
    if scale in ("none", "level"):
        return squares / len(errors) / (1 if scale == "none" else max(sigma, 0.2) ** 2)
    return squares / sizes


@pytest.mark.parametrize("scale", SCALES)
def test_losses_are_those_computed_by_hand_in_float64(scale: str) -> None:
    velocity, target, old = numbers(0, 1, 2)
    beta = 0.7
    both = {"target": target, "sigma": SIGMA, "advantages": ADVANTAGES, "scale": scale}
    awm = awm_loss(velocity=velocity, **both)  # type: ignore[arg-type]
    nft = nft_loss(velocity=velocity, velocity_old=old, beta=beta, **both)  # type: ignore[arg-type]
    single = nft_loss(velocity=velocity.float(), velocity_old=old.float(), beta=beta, **both)  # type: ignore[arg-type]
    for i, (advantage, sigma) in enumerate(zip(ADVANTAGES.tolist(), SIGMA.tolist(), strict=True)):
        assert awm[i].item() == pytest.approx(
            advantage * error_by_hand(velocity[i], target[i], sigma, scale), rel=1e-12
        )
        good = (1 + advantage) / 2
        toward = error_by_hand((1 - beta) * old[i] + beta * velocity[i], target[i], sigma, scale)
        away = error_by_hand((1 + beta) * old[i] - beta * velocity[i], target[i], sigma, scale)
        assert nft[i].item() == pytest.approx((good * toward + (1 - good) * away) / beta, rel=1e-12)
    torch.testing.assert_close(single.double(), nft, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [awm_loss, partial(nft_loss, velocity_old=numbers(2)[0], beta=0.7)])
def test_gradients_are_finite_differences(loss: object) -> None:
    velocity, target = numbers(0, 1)
    given = {"target": target, "sigma": SIGMA, "advantages": ADVANTAGES, "scale": "none"}
    assert torch.autograd.gradcheck(lambda v: loss(velocity=v, **given), velocity.requires_grad_())  # type: ignore[operator]


@pytest.mark.parametrize("scale", ["error", "x0"])
def test_the_divisor_of_a_scaled_error_is_a_constant(scale: str) -> None:
    velocity, target = numbers(0, 1)
    found = matching_error(velocity.requires_grad_(), target, SIGMA, scale)  # type: ignore[arg-type]
    factor = SIGMA[:, None, None] if scale == "x0" else torch.ones(3, 1, 1, dtype=torch.float64)
    size = (factor * (velocity - target)).detach().abs().mean((1, 2))
    gradient = torch.autograd.grad(found.sum(), velocity)[0]

    def fixed(v: Tensor) -> Tensor:
        return (factor * (v - target)).square().mean((1, 2)) / size

    step = 1e-6
    for index in ((0, 0, 0), (1, 1, 3), (2, 0, 2)):
        moved = torch.zeros_like(target)
        moved[index] = step
        change = (fixed(velocity.detach() + moved) - fixed(velocity.detach() - moved)).sum() / (2 * step)
        assert gradient[index].item() == pytest.approx(change.item(), rel=1e-6)
    # Its gradient does not depend on the error's size.
    larger = target + 100 * (velocity.detach() - target)
    again = matching_error(larger.requires_grad_(), target, SIGMA, scale)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.autograd.grad(again.sum(), larger)[0], gradient)


def test_at_the_old_policy_nft_has_the_gradient_of_awm() -> None:
    (velocity, target), beta = numbers(0, 1), 0.4
    velocity.requires_grad_()
    given = {"velocity": velocity, "target": target, "sigma": SIGMA, "advantages": ADVANTAGES, "scale": "none"}
    awm = torch.autograd.grad(awm_loss(**given).sum(), velocity)[0]  # type: ignore[arg-type]
    nft = torch.autograd.grad(nft_loss(velocity_old=velocity, beta=beta, **given).sum(), velocity)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(nft, awm)


def test_noised_latents_are_on_the_line_and_the_distance_is_a_square() -> None:
    clean, noise = numbers(3, 4)
    latents = noised(clean, noise, SIGMA)
    torch.testing.assert_close(latents[1], (clean[1] + noise[1]) / 2)
    torch.testing.assert_close(latents - SIGMA[:, None, None] * (noise - clean), clean)
    torch.testing.assert_close(velocity_distance(clean, clean + 2), torch.full((3,), 4.0).double())


@pytest.mark.parametrize("steps", [6, 25])
def test_weights_between_steps_are_tdw_on_the_grid_and_lines_between(steps: int) -> None:
    w_prompt, w_identity = step_weights("tdw", steps)
    grid = torch.arange(steps - 1)
    given = {"a_prompt": torch.tensor([1.3]), "a_identity": torch.tensor([-0.4]), "bonus": torch.tensor([0.1])}
    given |= {"w_prompt": w_prompt, "w_identity": w_identity}
    at_steps = shaped_advantages(steps=grid[None], **given)
    assert torch.equal(shaped_advantages(steps=grid[None].float(), **given), at_steps)
    between = shaped_advantages(steps=grid[None, :-1] + 0.5, **given)
    torch.testing.assert_close(between, (at_steps[:, 1:] + at_steps[:, :-1]) / 2)
    levels = torch.linspace(1, 0, steps + 1)
    torch.testing.assert_close(
        at_places(levels, torch.tensor([0.25, steps - 0.5])), 1 - torch.tensor([0.25, steps - 0.5]) / steps
    )


def test_what_cannot_be_computed_is_refused() -> None:
    velocity, target = numbers(0, 1)
    with pytest.raises(ValueError, match="need velocity and target"):
        matching_error(velocity, target[:2], SIGMA)
    with pytest.raises(ValueError, match="scale must be none, level, error or x0"):
        matching_error(velocity, target, SIGMA, "l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta must be positive"):
        nft_loss(velocity=velocity, target=target, velocity_old=target, sigma=SIGMA, advantages=ADVANTAGES, beta=0.0)
    for name in ("awm", "grpo", "a:b"):
        with pytest.raises(ValueError, match="is taken or has a colon"):
            register_objective(name)(lambda velocity: velocity)
