"""Which steps are stochastic: every order of the window, and rollouts inside one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from customized_grpo.config import Config, RolloutConfig
from customized_grpo.data import open_dataset
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.rollout import Trajectories, draw_images, euler, noise_levels
from customized_grpo.trainer.update import Items, draw_trained_steps, replay
from customized_grpo.trainer.windows import stochastic_steps


def rollout(steps: int = 10, **window: object) -> RolloutConfig:
    return RolloutConfig.model_validate({"steps": steps, "window": window or None})


def starts(config: RolloutConfig, iterations: int, seed: int = 0) -> list[int]:
    found = [stochastic_steps(config, seed, i) for i in range(iterations)]
    assert config.window is not None
    assert {len(steps) for steps in found} == {config.window.size}
    return [steps.start for steps in found]


def test_without_a_window_all_steps_but_the_last_are_stochastic() -> None:
    assert stochastic_steps(rollout(10), 0, 7) == range(9)


def test_a_progressive_window_moves_on_and_remains_at_the_end() -> None:
    config = rollout(7, size=4, stay=2)  # stochastic steps 0 .. 5, positions 0, 1, 2
    assert starts(config, 9) == [0, 0, 1, 1, 2, 2, 2, 2, 2]


def test_the_published_window() -> None:
    """MixGRPO's and the paper's: 4 steps of 25, 25 iterations at a position, moving by 1."""
    found = starts(rollout(25, size=4), 600)
    assert found[:51] == [0] * 25 + [1] * 25 + [2]
    assert max(found) == 20, "the last position ends with step 23, the last stochastic one"


def test_strides_and_a_first_position() -> None:
    assert starts(rollout(10, size=3, stay=1, stride=2, start=1), 5) == [1, 3, 5, 5, 5]


def test_a_window_rolls_back_when_asked() -> None:
    assert starts(rollout(7, size=4, stay=2, roll_back=True), 9) == [0, 0, 1, 1, 2, 2, 0, 0, 1]


def test_a_decaying_window_stays_ever_shorter_beyond_its_threshold() -> None:
    config = rollout(8, size=1, order="decaying", stay=8, decay=0.6931471805599453, decay_from=2)
    assert Counter(starts(config, 8 * 3 + 4 + 2 + 1 + 1)) == {0: 8, 1: 8, 2: 8, 3: 4, 4: 2, 5: 1, 6: 1}


def test_a_random_window_is_of_the_seed_and_goes_everywhere() -> None:
    config = rollout(6, size=2, order="random", stay=3)
    found = starts(config, 600)
    assert all(len(set(found[i : i + 3])) == 1 for i in range(0, 600, 3))
    counts = Counter(found[::3])
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 25  # 50 of each are expected
    assert starts(config, 600) == found != starts(config, 600, seed=1)


def test_a_window_that_does_not_fit_is_refused() -> None:
    assert rollout(10, size=9).window is not None
    with pytest.raises(ValueError, match=r"start 3 and size 7 pass the last stochastic step of rollout\.steps=10"):
        rollout(10, size=7, start=3)


def test_trained_steps_are_those_of_the_window() -> None:
    images = [("x", i) for i in range(200)]
    steps = draw_trained_steps(range(4, 8), 0.5, 0, 0, images)
    assert steps.shape == (200, 2)
    assert set(steps.flatten().tolist()) == {4, 5, 6, 7}


@pytest.fixture(scope="module")
def policy(make_config: Callable[..., Config]) -> Policy:
    return build_policy(make_config().policy)


def drawn(
    policy: Policy, config: Config, window: range, batch_size: int = 48
) -> tuple[list[Trajectories], list[Conditions], Tensor]:
    dataset = open_dataset(config.data)
    pairs = [dataset[i] for i in (0, 0, 0, 1, 1, 1)]
    conditions = [policy.encode(pair.prompt, pair.references) for pair in pairs]
    keys = [(pair.key, i % 3) for i, pair in enumerate(pairs)]
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    cut = config.rollout.model_copy(update={"batch_size": batch_size})
    batches = draw_images(policy, conditions, keys, cut, sigmas, window, seed=0, iteration=0)
    return list(batches), conditions, sigmas


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
@pytest.mark.parametrize("window", [range(0, 1), range(1, 3), range(2, 3)], ids=str)
def test_ratios_inside_a_window_are_exactly_one(
    policy: Policy, make_config: Callable[..., Config], sampler: str, window: range
) -> None:
    config = make_config(sampler=sampler)
    (batch,), _, sigmas = drawn(policy, config, window)
    assert batch.latents.shape[1] == len(window) + 1, "nothing is kept of the steps outside"
    rows = torch.arange(6)
    for t in window:
        items = Items.of(batch, rows, torch.full((6,), t), torch.zeros(6), sigmas)
        assert torch.equal(items.sigma, sigmas[t].expand(6))
        _, _, density = replay(policy, items, SAMPLERS[sampler], config.rollout.eta, sigmas[1])
        assert torch.equal((density - items.log_density).exp(), torch.ones(6))


def test_a_group_is_one_trajectory_up_to_its_window(policy: Policy, make_config: Callable[..., Config]) -> None:
    """The shared part is drawn once, and is what each image would have drawn by itself."""
    config = make_config()
    (batch,), conditions, sigmas = drawn(policy, config, range(2, 3))
    assert torch.equal(batch.latents[0, 0], batch.latents[2, 0])
    assert not torch.equal(batch.latents[0, 1], batch.latents[2, 1])
    (whole,), _, _ = drawn(policy, config, range(config.rollout.steps - 1))
    each = euler(policy, Conditions.join(conditions), whole.latents[:, 0], sigmas[:3])
    torch.testing.assert_close(batch.latents[:, 0], each, rtol=1e-4, atol=1e-5)
    last = euler(policy, Conditions.join(conditions), batch.latents[:, -1], sigmas[3:])
    assert torch.equal(batch.clean, last)


def test_the_shared_part_costs_one_image_a_group(
    policy: Policy, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    velocity = policy.velocity
    monkeypatch.setattr(policy, "velocity", lambda x, *rest: sizes.append(len(x)) or velocity(x, *rest))
    drawn(policy, make_config(), range(2, 3))
    assert sizes == [2, 2, 2, *[6] * (make_config().rollout.steps - 3)], "the window's first step, too, begins alike"
    sizes.clear()
    drawn(policy, make_config(shared_noise=False), range(2, 3))
    assert set(sizes) == {6}


def test_images_of_a_window_do_not_depend_on_the_batch(policy: Policy, make_config: Callable[..., Config]) -> None:
    (whole,), _, _ = drawn(policy, make_config(), range(1, 2))
    parts, _, _ = drawn(policy, make_config(), range(1, 2), batch_size=2)
    assert [batch.images.tolist() for batch in parts] == [[0, 1], [2, 3], [4, 5]]
    torch.testing.assert_close(torch.cat([batch.clean for batch in parts]), whole.clean, rtol=1e-4, atol=1e-4)
