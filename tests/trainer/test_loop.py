"""The loop as a whole: it learns, and resumes bit for bit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers
from running import metrics_of, run_training, same, tensors_of

from customized_grpo.config import Config, MethodConfig, TrainConfig, WindowConfig
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.trainer.conditioning import encode_ahead
from customized_grpo.trainer.optimizer import learning_rate
from customized_grpo.trainer.processes import ALONE

Make = Callable[..., Config]


def test_both_rewards_rise_and_nothing_leaks(make_config: Make, tmp_path: Path) -> None:
    config = make_config(iterations=16, pairs=2, group_size=8, learning_rate=3e-3, updates=1)
    held: list[tuple[int, int]] = []
    run_training(config, tmp_path, lambda _: held.append((len(os.listdir("/proc/self/fd")), threading.active_count())))
    records = metrics_of(tmp_path)
    for role in ("identity", "prompt"):
        means = torch.tensor([record[f"{role}/mean"] for record in records])
        assert means[-5:].mean() > means[:5].mean() + records[0][f"{role}/std"] / 2, role
    assert held[-1] == held[1], "open files and threads"


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 2, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", 2, [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_rate_after_a_warm_up(schedule: str, warmup: int, factors: list[float]) -> None:
    config = TrainConfig(iterations=6, learning_rate=2.0, schedule=schedule, warmup_iterations=warmup)
    assert [learning_rate(config, i) / 2 for i in range(6)] == pytest.approx(factors, rel=1e-5)


def test_the_shuffled_baseline_samples_alike_and_learns_else(make_config: Make, whole: Path, tmp_path: Path) -> None:
    run_training(make_config(iterations=1, method=MethodConfig(weighting="tdw-shuffled")), tmp_path)
    own, shuffled = metrics_of(whole)[0], metrics_of(tmp_path)[0]
    assert own["identity/mean"] == shuffled["identity/mean"]
    assert own["gradient_norm"] != pytest.approx(shuffled["gradient_norm"], rel=1e-3)


class Killed(Exception):
    pass


def interrupted(config: Config, run: Path, after: int) -> None:
    """Train until an exception ends the run after so many iterations, before their checkpoint; then resume it."""

    def kill(record: Mapping[str, float]) -> None:
        if record["iteration"] == after:
            raise Killed

    with pytest.raises(Killed):
        run_training(config, run, kill)
    torch.manual_seed(123)  # the state of a new process must not matter
    run_training(config, run)


@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(make_config: Make, whole: Path, tmp_path: Path, after: int) -> None:
    interrupted(make_config(), tmp_path, after)
    assert same(tensors_of(whole), tensors_of(tmp_path))
    assert metrics_of(whole) == metrics_of(tmp_path)


def test_options_train_and_resume_alike(make_config: Make, whole: Path, tmp_path: Path) -> None:
    """Each option changes what is learned, and the resumed run of all is their uninterrupted one."""
    window = WindowConfig.model_validate({"size": 1, "order": "random", "stay": 1})
    options = {"ratio": "guard", "clip_range_high": 1e-8, "window": window}
    run_training(make_config(**options, schedule="linear"), tmp_path / "whole")
    rates = [record["learning_rate"] for record in metrics_of(tmp_path / "whole")]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    interrupted(make_config(**options, schedule="linear"), tmp_path / "resumed", 3)
    assert same(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "resumed"))
    for name, value in options.items():
        run_training(make_config(iterations=1, **{name: value}), tmp_path / name)
        assert metrics_of(tmp_path / name)[0] != metrics_of(whole)[0], name


def test_conditions_encoded_ahead_leave_training_as_it_was_without_text_encoders(
    make_config: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    policy = config.policy.model_copy(update={"conditions": tmp_path / "kept", "offload": True})
    config = config.model_copy(update={"policy": policy})
    held_out = open_dataset(config.evaluation.data)
    encode_ahead(config, build_policy(policy), open_dataset(config.data), [(held_out, len(held_out))], 0, ALONE)

    def called(*_: object, **__: object) -> None:
        raise AssertionError("a text encoder was asked for")

    for kind in (transformers.CLIPTextModel, transformers.T5EncoderModel):
        monkeypatch.setattr(kind, "from_pretrained", called)
    tuned = run_training(config, tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    tuned.encode(held_out[3].prompt, held_out[3].references)
    with pytest.raises(ValueError, match="asked for"):
        tuned.encode("a prompt of nobody's", [])
