"""Training on noised copies of sampled images: what is sampled, resumed, split and refused; weights by purpose."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import gradient_of, metrics_of, run_training, same, sampled, tensors_of

from customized_grpo.config import Config, ConfigError, DataConfig, ForwardConfig, MethodConfig, ValidationConfig
from customized_grpo.config.loading import load_config
from customized_grpo.method import at_places, awm_loss, max_variance_subset, noised
from customized_grpo.protocols import Policy
from customized_grpo.trainer.credit import weights_of
from customized_grpo.trainer.forward import ForwardUpdater

Make = Callable[..., Config]


def forward(
    make: Make,
    objective: str = "awm",
    *,
    method: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
    **changes: Any,
) -> Config:
    """The small configuration with an objective on two noise levels per image."""
    changes["method"] = MethodConfig(objective=objective, **(method or {}))
    changes["forward"] = ForwardConfig(**{"levels": 2, **(given or {})})
    return make(**{"shared_noise": False, "updates": 1, **changes})


def test_only_clean_latents_are_stored_and_levels_lie_inside_the_steps(
    policy: Policy, make_config: Make, tmp_path: Path
) -> None:
    trainer, rollouts, advantages = sampled(forward(make_config, steps=5), policy, tmp_path)
    assert sum(part.nbytes for part in rollouts.trajectories) == 0
    places = rollouts.batch.trained
    assert places.shape == (9, 2) and bool((places >= 0).all() and (places < 4).all())
    assert bool((places[:, 0].floor() < places[:, 1].floor()).all()), "each in a step of its own"
    # Each level's advantage has TDW's weights of its own place.
    credit = advantages.credit
    one = credit.of(torch.arange(9))
    w_prompt, w_identity = (at_places(weights, places) for weights in weights_of(trainer.config.method, 5))
    expected = w_prompt * one.advantages["prompt"][:, None] + w_identity * one.advantages["identity"][:, None]
    expected = (expected + one.bonus[:, None]).clamp(-1, 1)
    torch.testing.assert_close(advantages.trained, expected)


def test_the_gradient_is_that_of_the_objective_on_all_items_at_once(
    policy: Policy, make_config: Make, tmp_path: Path
) -> None:
    config = forward(make_config, batch_size=4, max_gradient_norm=1e9)
    found, metrics = gradient_of(config, policy, tmp_path)
    trainer, rollouts, advantages = sampled(config, policy, tmp_path)
    updater = trainer._updater
    assert isinstance(updater, ForwardUpdater)
    total = torch.zeros(())
    for part in rollouts.trajectories:
        items = updater.items(part, set(range(9)), rollouts.batch.trained, advantages.trained)
        clean, noise = items.latents_and_noise()
        velocity = policy.velocity(
            noised(clean, noise, items.sigma), items.sigma, items.conditions.select(items.condition_rows)
        )
        losses = awm_loss(velocity=velocity, target=noise - clean, sigma=items.sigma, advantages=items.advantages)
        total = total + losses.sum()
    weights = list(policy.trainable().values())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / 18, weights, materialize_grads=True)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert metrics["loss"] == pytest.approx(float(total.detach()) / 18, rel=1e-4)
    assert metrics["old_distance"] == 0, "the moving average begins at the policy"


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        ("nft", {"weighting": "constrained", "keep": {"prompt": 0.0}}),
        pytest.param("awm", {"weighting": "adaptive"}, marks=pytest.mark.slow),
        ("grpo", {"weighting": "adaptive"}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    make_config: Make, tmp_path: Path, objective: str, method: dict[str, Any]
) -> None:
    data = DataConfig(path="world", split="held-out", seed=5, size=2)
    validation = ValidationConfig(data=data, images=5, per_iteration=2)
    config = forward(make_config, objective, method=method, iterations=4, validation=validation)
    run_training(config, tmp_path / "run")
    whole, records = tensors_of(tmp_path / "run"), metrics_of(tmp_path / "run")
    assert any(":validation.tuned" in name for name in whole)
    assert any(":old." in name for name in whole) == (objective != "grpo")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000004")
    run_training(config, tmp_path / "run")
    assert same(tensors_of(tmp_path / "run"), whole) and metrics_of(tmp_path / "run") == records
    assert records[0]["gain/identity"] == 0, "the first iteration's policy is the untuned model"
    assert records[-1]["gain/identity"] != 0 and records[-1].get("old_distance", 1.0) > 0
    assert records[-1]["weight/identity"] + records[-1]["weight/prompt"] == pytest.approx(1)


def test_another_objective_s_checkpoint_is_refused(make_config: Make, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(ValueError, match=r"has no old state; restore method\.objective"):
        run_training(forward(make_config, iterations=5), tmp_path / "run")


OWN = """
def halved(velocity, target, advantages, strength=0.5):
    return strength * advantages * (velocity - target).square().flatten(1).mean(1)

def scalar(velocity):
    return velocity.mean()

def needs(velocity, reward):
    return velocity.flatten(1).mean(1)
"""


def test_an_own_objective_is_a_function_by_path(policy: Policy, make_config: Make, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    found = []
    for name, given in ((f"{file}:halved", {}), (f"{file}:halved", {"options": {"strength": 1.0}}), ("awm", {})):
        config = forward(make_config, name, given={"pull": 0.0, **given}, max_gradient_norm=1e9)
        found.append(gradient_of(config, policy, tmp_path)[0])
    own, whole, awm = found
    torch.testing.assert_close(own, awm / 2)
    torch.testing.assert_close(whole, awm)
    for name, options, message in (
        ("scalar", {}, r"scalar returned \(\); return one loss per item"),
        ("needs", {}, "needs 'reward'; give it in forward.options, or take some of velocity, target"),
        ("halved", {"strenght": 1}, "halved has no argument 'strenght'; remove it"),
        ("missing", {}, "method.objective: .* has no 'missing'"),
    ):
        with pytest.raises(ConfigError, match=message):
            gradient_of(forward(make_config, f"{file}:{name}", given={"options": options}), policy, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.objective=drgo"], r"method\.objective: should be grpo, awm, nft, or package\.module:function"),
        (["rollout.shared_noise=true"], r"rollout\.shared_noise: makes all images of a group the same"),
        (["rollout.window.size=2"], r"rollout\.window: needs method\.objective=grpo, not awm"),
        (["method.surgery=pcgrad"], r"method\.surgery: pcgrad needs method\.objective=grpo"),
        (["method.weighting=tdw-shuffled"], r"method\.weighting: tdw-shuffled needs method\.objective=grpo"),
        (["forward.levels=6"], r"forward\.levels: is above 5"),
        (["forward.options.x=1"], r"forward\.options: are only for a function of your own"),
        (["method.weighting=constrained"], r"method\.keep: is empty"),
        (["method.keep.prompt=0"], r"method\.keep: needs method\.weighting=constrained"),
        (["method.pid=[-1, 0, 0]"], r"method\.pid\.0: input should be greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(None, ["method.objective=awm", *settings])
    assert len(refused.value.problems) == 1


def test_an_objective_has_its_own_defaults() -> None:
    default, awm = load_config(None, ["train.updates=1"]), load_config(None, ["method.objective=awm"])
    assert (default.method.advantage_clip, default.rollout.shared_noise) == (5.0, True)
    assert (awm.method.advantage_clip, awm.rollout.shared_noise, awm.forward.pull) == (1.0, False, 0.2)
    assert load_config(None, ["method.objective=nft"]).forward.scale == "x0"
    kept = load_config(None, ["method.objective=awm", "method.advantage_clip=5"])
    assert kept.method.advantage_clip == 5.0
    assert Config(method=MethodConfig(objective="awm")).train.updates == 1


@pytest.mark.parametrize("objective", ["awm", "grpo"])
def test_only_the_images_that_say_most_are_trained(
    policy: Policy, make_config: Make, tmp_path: Path, objective: str
) -> None:
    config = forward(make_config, objective, image_fraction=0.5)
    trainer, rollouts, advantages = sampled(config, policy, tmp_path)
    mean = advantages.credit.at(trainer.config.method, 6, torch.arange(6).expand(9, -1)).mean(1)
    expected = max_variance_subset(mean.view(3, 3), 2).flatten()
    assert advantages.chosen.tolist() == expected.tolist() and int(expected.sum()) == 6
    seen: list[int] = []
    items = trainer._updater.items
    trainer._updater.items = lambda batch, images, *rest: seen.extend(images) or items(batch, images, *rest)  # type: ignore[method-assign,func-returns-value]
    trainer.update(rollouts, advantages)
    assert sorted(set(seen)) == expected.nonzero().flatten().tolist()
