"""Interruptions: by signals, failing rewards, and errors while weights are exchanged."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from embedded import embedded
from running import SeeGroups, make_trainer, metrics_of, newest, run_training, same, tensors_of, weights_of

from customized_grpo.config import Config, TrainConfig
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.policies.sharding import undone
from customized_grpo.policies.tuning import _exchanged
from customized_grpo.protocols import Policy
from customized_grpo.rewards import RewardError
from customized_grpo.trainer.callbacks import TrainerCallback
from customized_grpo.trainer.checkpoint import load_checkpoint
from customized_grpo.trainer.ema import MovingAverage
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.order import image_numbers
from customized_grpo.trainer.processes import ALONE
from customized_grpo.utils import stopping
from customized_grpo.utils.stopping import Stopped

Make = Callable[..., Config]


class Interrupted(BaseException):
    """As a signal's handler raises it, anywhere."""


class EndsHalfWay(dict[str, torch.Tensor]):
    """Tensors by name, of which the third that is asked for is not given."""

    requested = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.requested += 1
        if self.requested == 3:
            raise Interrupted
        return super().__getitem__(name)


def test_an_exchange_of_weights_that_is_cut_off_is_undone(policy: Policy) -> None:
    before, average = weights_of(policy), MovingAverage(policy, 0.5)
    others = {name: weight + 1 for name, weight in before.items()}
    average._average = EndsHalfWay(others)
    for exchange in (_exchanged(torch.nn.Module(), policy.trainable(), EndsHalfWay(others)), average.applied()):
        with pytest.raises(Interrupted), exchange:
            raise AssertionError("it was not cut off")
        assert same(weights_of(policy), before)
    calls: list[str] = []

    def give_back() -> None:
        calls.append("begun")
        if len(calls) == 1:
            raise Interrupted
        calls.append("done")

    with pytest.raises(Interrupted), undone(give_back):
        pass
    assert calls == ["begun", "begun", "done"]


class Ask(TrainerCallback):
    """Sends this process a SIGTERM at an event of an iteration."""

    def __init__(self, event: str, iteration: int) -> None:
        def ask(trainer: object, *_: object) -> None:
            if trainer.iteration == iteration:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGTERM)

        setattr(self, event, ask)


@pytest.mark.parametrize(
    ("event", "iteration", "done"),
    [
        ("on_optimizer_step", 1, 2),
        ("on_groups", 2, 2),
        pytest.param("on_step_end", 2, 2, marks=pytest.mark.slow),
    ],
)
def test_a_stop_request_saves_what_is_done_and_the_run_resumes_bit_for_bit(
    make_config: Make,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    event: str,
    iteration: int,
    done: int,
) -> None:
    """While it updates, before an evaluation, and while it logs; tests/faults has other moments."""
    monkeypatch.setattr(stopping, "PATIENCE", 600.0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    trainer = make_trainer(make_config(checkpoint_every=10, sample_every=2), tmp_path, [Ask(event, iteration)])
    try:
        with pytest.raises(Stopped, match="saved and stopped by SIGTERM; resume with --resume") as stopped:
            trainer.train()
    finally:
        if trainer._stopping._end is not None:
            trainer._stopping._end.cancel()  # it would end this process
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert newest(tmp_path) == f"{done:06d}"
    assert metrics_of(tmp_path) == metrics_of(whole)[:done]
    run_training(make_config(), tmp_path)
    assert same(tensors_of(tmp_path), tensors_of(whole)) and metrics_of(tmp_path) == metrics_of(whole)


def test_a_reward_that_fails_in_an_evaluation_costs_no_iteration(make_config: Make, tmp_path: Path) -> None:
    config = make_config(iterations=4, checkpoint_every=10, sample_every=3, ema=0.5)
    policy = build_policy(config.policy)

    class Gone(TrainerCallback):
        def on_evaluate(self, trainer: object, evaluation: object) -> None:
            raise RewardError("the reward model has gone")

    held_out = open_dataset(config.evaluation.data)
    with pytest.raises(RewardError, match="has gone"):
        make_trainer(config, tmp_path, [Gone()], policy=policy, held_out=held_out).train()
    assert [record["iteration"] for record in metrics_of(tmp_path)] == [1, 2, 3]
    assert newest(tmp_path) == "000003"
    saved = build_policy(config.policy)
    saved.load(tmp_path / "checkpoints" / "000003" / "trainable")
    assert same(weights_of(policy), weights_of(saved)), "the weights themselves, not their average"


def test_weights_too_coarse_for_small_steps_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """At 2e-5, a published learning rate, a step is below half of what separates bfloat16 numbers near 0.03."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.full((8,), 0.03, dtype=dtype))
        optimizer = build_optimizer([weight], embedded(TrainConfig, learning_rate=2e-5, weight_decay=0.0), ALONE)
        optimizer.backward(weight.sum())
        optimizer.step()
        stays = bool((weight == torch.full((8,), 0.03, dtype=dtype)).all())
        warnings = [record.message for record in caplog.records]
        assert stays == bool(warnings) == (dtype == torch.bfloat16), dtype
    assert warnings[0].startswith("policy.dtype: all weights are trained in bfloat16")


def test_a_pair_sampled_twice_has_two_different_groups(make_config: Make, tmp_path: Path) -> None:
    assert image_numbers([7, 2, 7, 7], range(8), 2) == [0, 1, 0, 1, 2, 3, 4, 5]
    assert image_numbers([7, 2, 7], [3, 4], 2) == [1, 2], "whichever process samples it"
    config = make_config(iterations=1, pairs=2)
    see = SeeGroups()
    make_trainer(config, tmp_path, [see], dataset=[open_dataset(config.data)[0]]).train()
    first, second = see.seen[1].images
    assert not torch.equal(first, second)


def test_settings_changed_before_a_run_is_resumed_apply(policy: Policy, make_config: Make, whole: Path) -> None:
    changed = make_config(betas=(0.5, 0.6), weight_decay=0.25).train
    optimizer = build_optimizer(list(policy.trainable().values()), changed, ALONE)
    load_checkpoint(whole / "checkpoints" / "000004", policy, optimizer)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["betas"] == (0.5, 0.6) and state["param_groups"][0]["weight_decay"] == 0.25
    assert state["state"][0]["step"] == 8 and state["state"][0]["exp_avg"].abs().sum() > 0
