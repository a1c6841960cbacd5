"""What is exchanged or under way for a while when a signal, a judge or a number that is none comes in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from embedded import embedded
from running import make_trainer

from customized_grpo.config import Config, TrainConfig
from customized_grpo.data import open_dataset
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.policies.exchange import undone
from customized_grpo.policies.tuning import _exchanged
from customized_grpo.protocols import Policy
from customized_grpo.rewards import RewardError
from customized_grpo.trainer.callbacks import TrainerCallback
from customized_grpo.trainer.checkpoint import load_checkpoint, newest_checkpoint
from customized_grpo.trainer.ema import MovingAverage
from customized_grpo.trainer.groups import Groups
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.order import image_numbers
from customized_grpo.trainer.processes import ALONE
from customized_grpo.trainer.rollout import Trajectories, draw_images, noise_levels
from customized_grpo.trainer.update import Items, Updater, draw_trained_steps
from customized_grpo.utils.records import read_records

Make = Callable[..., Config]


class Interrupted(BaseException):
    """As a signal's handler raises it, anywhere."""


class EndsHalfWay(dict[str, torch.Tensor]):
    """Tensors by name, of which the third that is asked for is not given."""

    asked = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked += 1
        if self.asked == 3:
            raise Interrupted
        return super().__getitem__(name)


@pytest.fixture(scope="module")
def policy(make_config: Make) -> Policy:
    return build_policy(make_config().policy)


def numbers(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.trainable().items()}


def others(policy: Policy) -> EndsHalfWay:
    return EndsHalfWay({name: weight + 1 for name, weight in numbers(policy).items()})


def unchanged(policy: Policy, before: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in policy.trainable().items())


def test_weights_of_an_exchange_that_is_cut_off_are_given_back(policy: Policy) -> None:
    before, transformer = numbers(policy), torch.nn.Module()
    with pytest.raises(Interrupted), _exchanged(transformer, policy.trainable(), others(policy)):
        raise AssertionError("it was not cut off")
    assert unchanged(policy, before)


def test_averages_whose_coming_is_cut_off_go_again(policy: Policy) -> None:
    before, average = numbers(policy), MovingAverage(policy, 0.5)
    average._average = others(policy)
    with pytest.raises(Interrupted), average.applied():
        raise AssertionError("it was not cut off")
    assert unchanged(policy, before)


def test_giving_back_that_is_cut_off_is_done_again() -> None:
    calls: list[str] = []

    def give_back() -> None:
        calls.append("begun")
        if len(calls) == 1:
            raise Interrupted
        calls.append("done")

    with pytest.raises(Interrupted), undone(give_back):
        pass
    assert calls == ["begun", "begun", "done"]


def test_a_judge_that_fails_in_held_out_samples_costs_no_iteration(make_config: Make, tmp_path: Path) -> None:
    config = make_config(iterations=4, checkpoint_every=10, sample_every=3, ema=0.5)
    policy = build_policy(config.policy)

    class Gone(TrainerCallback):
        def on_evaluate(self, trainer: object, evaluation: object) -> None:
            raise RewardError("the reward model has gone")

    held_out = open_dataset(config.evaluation.data)
    with pytest.raises(RewardError, match="has gone"):
        make_trainer(config, tmp_path, [Gone()], policy=policy, held_out=held_out).train()
    assert [record["iteration"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    kept = newest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept.name == "000003"
    saved = build_policy(config.policy)
    load_checkpoint(kept, saved, build_optimizer(list(saved.trainable().values()), config.train, ALONE))
    assert unchanged(policy, numbers(saved)), "the weights themselves, not their average"


def drawn(policy: Policy, config: Config) -> tuple[list[Trajectories], torch.Tensor, torch.Tensor]:
    """Two batches of three images, the first of which are not finite, their trained steps and the noise levels."""
    dataset, rollout = open_dataset(config.data), config.rollout
    pairs = [dataset[i // 3] for i in range(6)]
    keys = [(pair.key, i % 3) for i, pair in enumerate(pairs)]
    sigmas, stochastic = noise_levels(policy, rollout.steps, rollout.shift), range(rollout.steps - 1)
    trained = draw_trained_steps(stochastic, 1.0, 0, 0, keys)
    conditions = [policy.encode(pair.prompt, pair.references) for pair in pairs]
    with torch.no_grad():
        batches = list(
            draw_images(
                policy, conditions, keys, rollout.model_copy(update={"batch_size": 3}), sigmas, stochastic,
                seed=0, iteration=0, trained=trained, means=True,
            )
        )  # fmt: skip
    for failed in (batches[0], batches[1]):
        rows = slice(None) if failed is batches[0] else slice(0, 1)
        failed.latents[rows] = torch.nan
        failed.log_density[rows] = torch.nan
    return batches, trained, sigmas


def test_images_that_are_not_finite_are_neither_probed_nor_waited_with(policy: Policy, make_config: Make) -> None:
    config = make_config()
    batches, trained, sigmas = drawn(policy, config)
    optimizer = build_optimizer(list(policy.trainable().values()), config.train, ALONE)
    updater = Updater(policy, optimizer, config.train, SAMPLERS[config.rollout.sampler], config.rollout.eta)
    probed, count = updater.probe(batches, trained, sigmas)
    assert count == 2, "the second batch's other two"
    assert probed == {"kl": pytest.approx(0.0, abs=1e-6), "drift": pytest.approx(0.0, abs=1e-6)}
    assert Items.idle(batches, sigmas).latents.isfinite().all()
    probed, count = updater.probe(batches[:1], trained, sigmas)
    assert count == 0
    assert all(value != value for value in ALONE.mean(probed, count).values()), "nothing is known, so it says NaN"


def test_weights_that_are_too_coarse_for_small_steps_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Of 2e-5, a published rate, a step is below half of what tells bfloat16 numbers near 0.03 apart."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.full((8,), 0.03, dtype=dtype))
        optimizer = build_optimizer([weight], embedded(TrainConfig, learning_rate=2e-5, weight_decay=0.0), ALONE)
        optimizer.backward(weight.sum())
        optimizer.step()
        stays = bool((weight == torch.full((8,), 0.03, dtype=dtype)).all())
        told = [record.message for record in caplog.records]
        assert stays == bool(told) == (dtype == torch.bfloat16), dtype
    assert told[0].startswith("policy.dtype: all weights are trained in bfloat16")


def test_a_pair_drawn_twice_has_pictures_of_its_own() -> None:
    assert image_numbers([7, 2, 7, 7], range(8), 2) == [0, 1, 0, 1, 2, 3, 4, 5]
    assert image_numbers([7, 2, 7], [3, 4], 2) == [1, 2], "whichever process draws it"


def test_a_run_of_one_pair_draws_different_groups(make_config: Make, tmp_path: Path) -> None:
    config = make_config(iterations=1, pairs=2)
    dataset = open_dataset(config.data)
    seen: list[Groups] = []

    class See(TrainerCallback):
        def on_groups(self, trainer: object, groups: Groups) -> None:
            seen.append(groups)

    make_trainer(config, tmp_path, [See()], dataset=[dataset[0]]).train()
    first, second = seen[0].pictures
    assert not torch.equal(first, second)


def test_settings_changed_before_a_run_goes_on_hold(make_config: Make, tmp_path: Path) -> None:
    config = make_config(iterations=1, checkpoint_every=1)
    policy = build_policy(config.policy)
    make_trainer(config, tmp_path, policy=policy).train()
    changed = config.train.model_copy(update={"betas": (0.5, 0.6), "weight_decay": 0.25})
    optimizer = build_optimizer(list(policy.trainable().values()), changed, ALONE)
    kept = newest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    load_checkpoint(kept, policy, optimizer)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["betas"] == (0.5, 0.6) and state["param_groups"][0]["weight_decay"] == 0.25
    assert state["state"][0]["step"] == config.train.updates and state["state"][0]["exp_avg"].abs().sum() > 0
