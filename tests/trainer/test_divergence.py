"""Numbers that are none: which updates are skipped, what stops a run, what a policy's drift is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import run_training

from customized_grpo.config import Config, ConfigError
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy
from customized_grpo.rewards.errors import RewardError
from customized_grpo.trainer.checkpoint import newest_checkpoint
from customized_grpo.trainer.divergence import DivergenceError, check_drift, check_skipped
from customized_grpo.trainer.rollout import noise_levels
from customized_grpo.trainer.scoring import why_stop
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.trainer.update import Updater
from customized_grpo.utils.records import read_records


@pytest.fixture(scope="module")
def policy(make_config: Callable[..., Config]) -> Policy:
    return build_policy(make_config().policy)


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


def test_an_update_without_a_finite_gradient_leaves_the_weights_and_is_counted(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(0, 3))  # both of the first iteration, one of the second
    fresh = {name: weight.clone() for name, weight in build_policy(make_config().policy).trainable().items()}
    tuned = run_training(make_config(iterations=1), tmp_path / "one")
    assert all(torch.equal(weight, fresh[name]) for name, weight in tuned.trainable().items())
    poison(monkeypatch, range(0, 3))
    tuned = run_training(make_config(iterations=2), tmp_path / "two")
    assert [record["share/skipped"] for record in read_records(tmp_path / "two" / "metrics.jsonl")] == [1.0, 0.5]
    assert all(bool(weight.isfinite().all()) for weight in tuned.trainable().values())
    assert any(not torch.equal(weight, fresh[name]) for name, weight in tuned.trainable().items())


def test_too_many_in_a_row_end_the_run_and_leave_the_last_checkpoint(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(iterations=8, max_skipped=2)
    poison(monkeypatch, range(5, 100))
    with pytest.raises(DivergenceError, match=r"iteration 4: 3 updates in a row .*, more than train.max_skipped=2"):
        run_training(config, tmp_path)
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "000002"
    check_skipped(2, 2, 1, tmp_path)


@pytest.mark.parametrize("rate", [1.0, 1e30])
def test_a_learning_rate_too_high_ends_the_run_in_its_first_iteration(
    make_config: Callable[..., Config], tmp_path: Path, rate: float
) -> None:
    with pytest.raises(DivergenceError, match=r"iteration 1: .*lower train.learning_rate.* in .*config.yaml"):
        run_training(make_config(learning_rate=rate, checkpoint_every=1), tmp_path)
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_a_drift_is_bounded_by_the_setting_and_must_be_a_number(tmp_path: Path) -> None:
    check_drift(0.99, 1.0, 1, tmp_path)
    check_drift(1e9, None, 1, tmp_path)
    for drift, limit in ((1.01, 1.0), (math.nan, None), (math.inf, None)):
        with pytest.raises(DivergenceError, match="drift"):
            check_drift(drift, limit, 1, tmp_path)


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_drift_is_the_change_of_the_velocity_over_its_own_size(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Of a policy whose velocity is a multiple of the base model's, by any sampler."""
    found: list[float] = []
    probe = Updater.probe

    def stretched(self: Updater, *given: object) -> dict[str, float]:
        velocity = type(self.policy).velocity
        reference = self.policy.reference

        class Inside:
            factor = 1.5

        def enter() -> object:
            class Context:
                def __enter__(self) -> None:
                    Inside.factor = 1.0
                    inner.__enter__()

                def __exit__(self, *error: object) -> None:
                    inner.__exit__(*error)
                    Inside.factor = 1.5

            inner = reference()
            return Context()

        with monkeypatch.context() as patch:
            patch.setattr(self.policy, "reference", enter)
            patch.setattr(type(self.policy), "velocity", lambda *a: Inside.factor * velocity(*a))
            for weight in self.policy.trainable().values():
                weight.data.zero_()
            found.append(probe(self, *given)[0]["drift"])  # type: ignore[arg-type]
        return {"kl": 0.0, "drift": found[-1]}, 1

    monkeypatch.setattr(Updater, "probe", stretched)
    run_training(make_config(iterations=1, sampler=sampler), tmp_path)
    assert found == [pytest.approx(0.25, rel=1e-3)]


def test_pictures_that_overflowed_are_not_judged(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture of NaN has no score, whatever a judge would make of it; the policy learns from the others."""
    config = make_config(iterations=1, max_missing=0.2)
    decode, spoil = CustomizedGRPOTrainer._decode, [True, False, True, False]

    def spoilt(self: CustomizedGRPOTrainer, clean: torch.Tensor) -> torch.Tensor:
        images = decode(self, clean)
        if spoil.pop(0):
            images[0, 0, 0, 0] = math.nan
        return images

    monkeypatch.setattr(CustomizedGRPOTrainer, "_decode", spoilt)
    tuned = run_training(config, tmp_path / "run")
    (record,) = read_records(tmp_path / "run" / "metrics.jsonl")
    assert record["share/missing"] == pytest.approx(1 / 9)
    assert all(bool(weight.isfinite().all()) for weight in tuned.trainable().values())
    with pytest.raises(RewardError, match=r"1 of 9 images have no score.*; 1 are no finite numbers: set policy.dtype"):
        run_training(make_config(iterations=1, max_missing=0.0), tmp_path / "none")
    assert why_stop(1, 9, None, 0.2, lambda counts: counts, 1) is None


def test_noise_levels_that_coincide_are_refused(policy: Policy) -> None:
    assert bool((noise_levels(policy, 25, 1000.0).diff() < 0).all())
    with pytest.raises(ConfigError, match=r"rollout\.shift: 1e\+09 makes two of 6 noise levels the same"):
        noise_levels(policy, 6, 1e9)
