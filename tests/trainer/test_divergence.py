"""Numbers that are not finite: which updates are skipped, what stops a run, and a policy's drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from running import draw, metrics_of, newest, run_training, same, updater_of, weights_of

from customized_grpo.config import Config
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy
from customized_grpo.rewards.errors import RewardError
from customized_grpo.trainer.divergence import DivergenceError, check_drift
from customized_grpo.trainer.processes import ALONE
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.trainer.update import Updater

Make = Callable[..., Config]


def poison(monkeypatch: pytest.MonkeyPatch, updates: range) -> None:
    """Have a weight's gradient be NaN in those updates, counted from 0."""
    inner, made = Updater.update, [0]

    def update(self: Updater, *given: object) -> dict[str, float]:
        factor = math.nan if made[0] in updates else 1.0
        hook = next(iter(self.policy.trainable().values())).register_hook(lambda gradient: gradient * factor)
        made[0] += 1
        try:
            return inner(self, *given)  # type: ignore[arg-type]
        finally:
            hook.remove()

    monkeypatch.setattr(Updater, "update", update)


def test_updates_without_a_finite_gradient_are_skipped_and_too_many_end_the_run(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = weights_of(build_policy(make_config().policy))
    poison(monkeypatch, range(0, 3))  # both of the first iteration, one of the second
    policy = run_training(make_config(iterations=2, max_skipped=3), tmp_path / "few")
    assert [record["share/skipped"] for record in metrics_of(tmp_path / "few")] == [1.0, 0.5]
    assert all(bool(weight.isfinite().all()) for weight in policy.trainable().values())
    assert not same(weights_of(policy), fresh)
    poison(monkeypatch, range(5, 100))
    with pytest.raises(DivergenceError, match=r"iteration 4: 3 updates in a row .*, more than train.max_skipped=2"):
        run_training(make_config(iterations=8, max_skipped=2), tmp_path / "many")
    assert newest(tmp_path / "many") == "000002"
    poison(monkeypatch, range(0, 100))
    with pytest.raises(DivergenceError, match=r"iteration 1: 2 updates in a row .*, all of the run's; lower"):
        run_training(make_config(iterations=1, max_skipped=3), tmp_path / "none")


def test_a_loss_that_is_not_finite_ends_the_run(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Updater.update
    monkeypatch.setattr(Updater, "update", lambda self, *given: inner(self, *given) | {"loss": math.inf})
    with pytest.raises(DivergenceError, match=r"iteration 1: the loss is inf, not a finite number; lower train"):
        run_training(make_config(iterations=1), tmp_path)


@pytest.mark.parametrize("rate", [1.0, 1e30])
def test_a_learning_rate_too_high_ends_the_run_in_its_first_iteration(
    make_config: Make, tmp_path: Path, rate: float
) -> None:
    with pytest.raises(DivergenceError, match=r"iteration 1: .*lower train.learning_rate.* in .*config.yaml"):
        run_training(make_config(learning_rate=rate, checkpoint_every=1), tmp_path)
    assert newest(tmp_path) is None


def test_a_drift_is_bounded_by_the_setting_and_must_be_a_number(tmp_path: Path) -> None:
    check_drift(0.99, 1.0, 1, tmp_path)
    check_drift(1e9, None, 1, tmp_path)
    for drift, limit in ((1.01, 1.0), (math.nan, None), (math.inf, None)):
        with pytest.raises(DivergenceError, match="drift"):
            check_drift(drift, limit, 1, tmp_path)


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_drift_is_the_change_of_the_velocity_over_its_own_size(
    policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """By any sampler, for a policy whose velocity is 1.5 times the base model's."""
    config = make_config(sampler=sampler)
    batches, trained = draw(policy, config)
    velocity, factor = policy.velocity, [1.5]

    @contextmanager
    def reference() -> Iterator[None]:
        factor[0] = 1.0
        yield
        factor[0] = 1.5

    monkeypatch.setattr(policy, "velocity", lambda *given: factor[0] * velocity(*given))
    monkeypatch.setattr(policy, "reference", reference)
    probed, _ = updater_of(policy, config)[0].probe(batches, trained)
    assert probed["drift"] == pytest.approx(0.25, rel=1e-3)


def test_images_that_are_not_finite_are_not_probed(policy: Policy, make_config: Make) -> None:
    batches, trained = draw(policy, make_config(), size=3, means=True)
    for batch, rows in ((batches[0], slice(None)), (batches[1], slice(0, 1))):
        batch.latents[rows] = torch.nan
        batch.log_density[rows] = torch.nan
    updater, _ = updater_of(policy, make_config())
    probed, count = updater.probe(batches, trained)
    assert count == 2, "the second batch's other two"
    assert probed == {"kl": pytest.approx(0.0, abs=1e-6), "drift": pytest.approx(0.0, abs=1e-6)}
    assert updater.idle(batches).latents.isfinite().all()
    probed, count = updater.probe(batches[:1], trained)
    assert count == 0
    assert all(math.isnan(value) for value in ALONE.mean(probed, count).values()), "nothing is known"


def test_images_that_overflowed_are_not_scored(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of NaN has no score, whatever a reward would make of it; the policy learns from the others."""
    decode, spoil = CustomizedGRPOTrainer._decode, [True, False, True, False]

    def spoilt(self: CustomizedGRPOTrainer, clean: torch.Tensor) -> torch.Tensor:
        images = decode(self, clean)
        if spoil.pop(0):
            images[0, 0, 0, 0] = math.nan
        return images

    monkeypatch.setattr(CustomizedGRPOTrainer, "_decode", spoilt)
    tuned = run_training(make_config(iterations=1, max_missing=0.2), tmp_path / "run")
    (record,) = metrics_of(tmp_path / "run")
    assert record["share/missing"] == pytest.approx(1 / 9)
    assert all(bool(weight.isfinite().all()) for weight in tuned.trainable().values())
    with pytest.raises(RewardError, match=r"1 of 9 images have no score.*; 1 images are not finite: set policy.dtype"):
        run_training(make_config(iterations=1, max_missing=0.0), tmp_path / "none")
