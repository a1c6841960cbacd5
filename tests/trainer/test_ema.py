"""The moving average: its arithmetic, its place in a run, and a resumed run that has it bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import make_trainer, run_training
from safetensors.torch import load_file
from test_loop import tensors_of

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.trainer import base
from customized_grpo.trainer.ema import MovingAverage


def weights_of(policy: object) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.trainable().items()}  # type: ignore[attr-defined]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_it_follows_the_weights_and_gives_them_back(make_config: Callable[..., Config]) -> None:
    policy = build_policy(make_config().policy)
    start = weights_of(policy)
    average = MovingAverage(policy, 0.75)
    expected = start
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
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        raise RuntimeError("inside")
    assert same(weights_of(policy), own)
    none = MovingAverage(policy, 0.0)
    none.update()
    none.apply()
    assert none.tensors == {} and same(weights_of(policy), own)


def test_a_run_ends_and_samples_with_it_and_trains_without(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = weights_of(run_training(make_config(), tmp_path / "plain"))
    config = make_config(ema=0.5, sample_every=2)
    policy, samples = build_policy(config.policy), []
    whole = base.evaluate

    def watched(*given: object, **named: object) -> object:
        samples.append(weights_of(policy))
        return whole(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "evaluate", watched)
    make_trainer(config, tmp_path / "ema", policy=policy, held_out=open_dataset(config.evaluation.data)).train()
    samples.pop(0)  # the base model's
    kept = tensors_of(tmp_path / "ema")
    last = {n.partition(":")[2]: t for n, t in kept.items() if n.startswith("pytorch_lora")}
    assert same(last, {n.partition(":")[2]: t for n, t in tensors_of(tmp_path / "plain").items() if n.startswith("py")})
    final = weights_of(policy)
    assert not same(final, plain)
    assert same(final, {name.partition("ema.")[2]: tensor for name, tensor in kept.items() if ":ema." in name})
    assert len(samples) == 2 and same(samples[-1], final)


def test_a_resumed_run_has_it_bit_for_bit(make_config: Callable[..., Config], tmp_path: Path) -> None:
    whole = weights_of(run_training(make_config(ema=0.9), tmp_path / "whole"))
    run_training(make_config(ema=0.9, iterations=4), tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "000004")
    resumed = weights_of(run_training(make_config(ema=0.9), tmp_path / "half"))
    assert same(resumed, whole)
    assert same(weights_of(run_training(make_config(ema=0.9), tmp_path / "half")), whole), "a finished run, too"
    state = load_file(tmp_path / "half" / "checkpoints" / "000004" / "state.safetensors")
    assert any(name.startswith("ema.") for name in state)
    without = weights_of(run_training(make_config(), tmp_path / "half"))
    assert not same(without, whole), "an average that is no longer asked for is left out"
    run_training(make_config(iterations=2), tmp_path / "none")
    with pytest.raises(ValueError, match=r"train\.ema to 0"):
        run_training(make_config(ema=0.9), tmp_path / "none")
