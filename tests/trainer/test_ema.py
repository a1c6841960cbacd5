"""The moving average: its arithmetic, its use in a run, and a resumed run that has it bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import make_trainer, run_training, same, tensors_of, weights_of

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.trainer import base
from customized_grpo.trainer.ema import MovingAverage

Make = Callable[..., Config]


def test_it_follows_the_weights_and_gives_them_back(make_config: Make) -> None:
    policy = build_policy(make_config().policy)
    average, expected = MovingAverage(policy, 0.75), weights_of(policy)
    for _ in range(3):
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight.add_(1.0)
        average.update()
        expected = {name: 0.75 * expected[name] + 0.25 * weight for name, weight in weights_of(policy).items()}
    own = weights_of(policy)
    with average.applied():
        for name, weight in policy.trainable().items():
            assert torch.allclose(weight, expected[name], atol=1e-6)
    assert same(weights_of(policy), own)


def test_a_run_ends_and_samples_with_it_and_trains_without(
    make_config: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(ema=0.5, sample_every=2)
    policy, samples = build_policy(config.policy), []
    evaluate = base.evaluate

    def watched(*given: object, **named: object) -> object:
        samples.append(weights_of(policy))
        return evaluate(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "evaluate", watched)
    make_trainer(config, tmp_path, policy=policy, held_out=open_dataset(config.evaluation.data)).train()
    samples.pop(0)  # the base model's
    stored, plain, final = tensors_of(tmp_path), tensors_of(whole), weights_of(policy)
    lora = [name for name in plain if name.startswith("pytorch_lora")]
    assert lora and all(torch.equal(stored[name], plain[name]) for name in lora)
    assert same(final, {name.partition("ema.")[2]: tensor for name, tensor in stored.items() if ":ema." in name})
    assert len(samples) == 2 and same(samples[-1], final)


def test_a_resumed_run_has_it_bit_for_bit(make_config: Make, whole: Path, tmp_path: Path) -> None:
    complete = weights_of(run_training(make_config(ema=0.9), tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000004")
    for _ in range(2):  # the second time it is finished already
        assert same(weights_of(run_training(make_config(ema=0.9), tmp_path / "run")), complete)
    without = weights_of(run_training(make_config(), tmp_path / "run"))
    assert not same(without, complete), "an average that is no longer asked for is omitted"
    shutil.copytree(whole, tmp_path / "none")
    with pytest.raises(ValueError, match=r"train\.ema to 0"):
        run_training(make_config(ema=0.9), tmp_path / "none")
