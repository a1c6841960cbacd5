"""Rollouts can be replayed exactly and do not depend on how batches are cut, whichever steps are stochastic."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from running import draw
from torch import Tensor

from customized_grpo.config import Config, ConfigError, RolloutConfig
from customized_grpo.data import open_dataset
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.grpo import Items, replay
from customized_grpo.trainer.rollout import batches, euler, noise_levels
from customized_grpo.trainer.windows import stochastic_steps

Make = Callable[..., Config]
EVERYONE = torch.arange(6)


@pytest.fixture(scope="module")
def policy(make_config: Make) -> Policy:
    made = build_policy(make_config().policy)
    with torch.no_grad():  # an adapter that does something
        for weight in made.trainable().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return made


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
@pytest.mark.parametrize("window", [range(3), range(1, 3), range(2, 3)], ids=str)
def test_on_policy_ratios_are_exactly_one(policy: Policy, make_config: Make, sampler: str, window: range) -> None:
    config = make_config(sampler=sampler)
    (batch,), _ = draw(policy, config, stochastic=window)
    assert batch.latents.shape[1] == len(window) + 1, "nothing is stored of the steps outside"
    for t in window:
        items = Items.of(batch, EVERYONE, torch.full((6,), t), torch.zeros(6))
        _, _, density = replay(policy, items, SAMPLERS[sampler], config.rollout.eta)
        assert density.requires_grad
        assert torch.equal((density - items.log_density).exp(), torch.ones(6))
    rows, steps = torch.tensor([0, 3, 3, 5, 1]), torch.tensor([window[-1], *[window[0]] * 4])
    items = Items.of(batch, rows, steps, torch.zeros(5))
    _, _, density = replay(policy, items, SAMPLERS[sampler], config.rollout.eta)
    assert (density - items.log_density).exp().sub(1).abs().max() < 1e-5, "mixed batches only round"


@pytest.mark.parametrize("window", [range(3), range(1, 2)], ids=str)
def test_images_do_not_depend_on_the_batch(policy: Policy, make_config: Make, window: range) -> None:
    (whole,), _ = draw(policy, make_config(), stochastic=window)
    for rows in ([4], [5, 0], [2, 3, 4]):
        (part,), _ = draw(policy, make_config(), rows, stochastic=window)
        torch.testing.assert_close(part.clean, whole.clean[rows], rtol=1e-4, atol=1e-4)
    parts, _ = draw(policy, make_config(), stochastic=window, size=2)
    assert [batch.images.tolist() for batch in parts] == [[0, 1], [2, 3], [4, 5]]
    torch.testing.assert_close(torch.cat([batch.clean for batch in parts]), whole.clean, rtol=1e-4, atol=1e-4)
    assert (whole.clean[0] - whole.clean[1]).abs().max() > 0.01, "images of a group must differ"


def test_batches_keep_equal_shapes_together() -> None:
    shapes = [Conditions({"tokens": torch.zeros(1, n)}) for n in (3, 4, 3, 3, 4)]
    assert batches(shapes, 2) == [[0, 2], [3], [1, 4]]
    sizes = [dataclasses.replace(shapes[0], latent_shape=shape) for shape in ((2, 3, 4), (3, 2, 4), (2, 3, 4))]
    assert batches(sizes, 2) == [[0, 2], [1]]
    with pytest.raises(ValueError, match="different shapes"):
        Conditions.join(sizes)
    with pytest.raises(ValueError, match="different shapes"):
        Conditions.join(shapes)


@pytest.mark.parametrize("first", [0, 1])
def test_images_that_start_alike_share_one_velocity_forward_and_backward(
    policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """The model computes a group's common start once, with the result of images that each have their own."""
    config = make_config()
    seen: list[int] = []
    velocity = policy.velocity

    def watched(latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        seen.append(len(latents))
        return velocity(latents, sigma, conditions)

    monkeypatch.setattr(policy, "velocity", watched)
    (batch,), _ = draw(policy, config, stochastic=range(first, config.rollout.steps - 1))
    assert seen == [2] * (first + 1) + [6] * (config.rollout.steps - first - 1), "two groups, then six images"
    advantages = torch.linspace(-1, 1, 12)
    found = []
    for together in (True, False):
        steps = torch.tensor([first, first + 1]).repeat(6)
        items = Items.of(batch, EVERYONE.repeat_interleave(2), steps, advantages)
        if not together:
            items = dataclasses.replace(items, same=torch.arange(12))
        seen.clear()
        _, _, density = replay(policy, items, SAMPLERS[config.rollout.sampler], config.rollout.eta)
        assert seen == [8 if together else 12]
        found.append((density, *torch.autograd.grad((density * advantages).sum(), list(policy.trainable().values()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_group_is_one_trajectory_up_to_its_window(policy: Policy, make_config: Make) -> None:
    """The shared part is sampled once, and is what each image would have sampled by itself."""
    config = make_config()
    (batch,), _ = draw(policy, config, stochastic=range(2, 3))
    assert torch.equal(batch.latents[0, 0], batch.latents[2, 0])
    assert not torch.equal(batch.latents[0, 1], batch.latents[2, 1])
    (whole,), _ = draw(policy, config)
    assert not torch.equal(whole.latents[0, 0], whole.latents[3, 0]), "another group has other noise"
    (apart,), _ = draw(policy, make_config(shared_noise=False))
    assert not torch.equal(apart.latents[0, 0], apart.latents[2, 0])
    dataset = open_dataset(config.data)
    encoded = [policy.encode(dataset[i].prompt, dataset[i].references) for i in (0, 0, 0, 1, 1, 1)]
    each = euler(policy, Conditions.join(encoded), whole.latents[:, 0], batch.sigmas[:3])
    torch.testing.assert_close(batch.latents[:, 0], each, rtol=1e-4, atol=1e-5)
    assert torch.equal(batch.clean, euler(policy, Conditions.join(encoded), batch.latents[:, -1], batch.sigmas[3:]))


def test_noise_levels_that_coincide_are_refused(policy: Policy) -> None:
    assert bool((noise_levels(policy, 25, 1000.0).diff() < 0).all())
    with pytest.raises(ConfigError, match=r"rollout\.shift: 1e\+09 makes two of 6 noise levels the same"):
        noise_levels(policy, 6, 1e9)


def starts(iterations: int, seed: int = 0, steps: int = 10, **window: object) -> list[int]:
    config = RolloutConfig.model_validate({"steps": steps, "window": window})
    found = [stochastic_steps(config, seed, i) for i in range(iterations)]
    assert {len(steps) for steps in found} == {window["size"]}
    return [steps.start for steps in found]


def test_windows_move_by_their_order() -> None:
    assert stochastic_steps(RolloutConfig.model_validate({"steps": 10}), 0, 7) == range(9), "all but the last step"
    assert starts(9, steps=7, size=4, stay=2) == [0, 0, 1, 1, 2, 2, 2, 2, 2], "it remains at the end"
    assert starts(9, steps=7, size=4, stay=2, roll_back=True) == [0, 0, 1, 1, 2, 2, 0, 0, 1]
    assert starts(5, size=3, stay=1, stride=2, start=1) == [1, 3, 5, 5, 5]
    published = starts(600, steps=25, size=4)  # MixGRPO's: 25 iterations at a position, moving by 1
    assert published[:51] == [0] * 25 + [1] * 25 + [2]
    assert max(published) == 20, "the last position ends with step 23, the last stochastic one"
    decaying = starts(32, steps=8, size=1, order="decaying", stay=8, decay=0.6931471805599453, decay_from=2)
    assert Counter(decaying) == {0: 8, 1: 8, 2: 8, 3: 4, 4: 2, 5: 1, 6: 1}
    with pytest.raises(ValueError, match=r"start 3 and size 7 pass the last stochastic step of rollout\.steps=10"):
        starts(1, size=7, start=3)


def test_a_random_window_depends_on_the_seed_and_goes_everywhere() -> None:
    window = {"steps": 6, "size": 2, "order": "random", "stay": 3}
    found = starts(600, **window)  # type: ignore[arg-type]
    assert all(len(set(found[i : i + 3])) == 1 for i in range(0, 600, 3))
    counts = Counter(found[::3])
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 25  # 50 of each are expected
    assert starts(600, **window) == found != starts(600, seed=1, **window)  # type: ignore[arg-type]
