"""Whole runs on a GPU: stopped and resumed, with a moving average, and as the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from devices import GPU
from running import metrics_of, run_training, tensors_of
from tiny_models import Model

from customized_grpo.config import Config
from customized_grpo.config.loading import EMBEDDED_RECIPE, load_config
from customized_grpo.utils.records import read_records

RATE = 1e-3
#: Few small images in few steps, scored by the embedded reward models.
SMALL = {
    "train.iterations": 3, "train.checkpoint_every": 1, "train.updates": 2, "train.ema": 0.5,
    "train.learning_rate": RATE, "rollout.steps": 3, "rollout.group_size": 3, "rollout.pairs": 2, "data.size": 4,
    "policy.height": 32, "policy.width": 32, "policy.reference_sizes": "[[32, 32]]", "evaluation.data.size": 2,
    "evaluation.steps": 2,
}  # fmt: skip
KINDS = {
    "float32": {},
    "bfloat16": {"policy.dtype": "bfloat16", "policy.gradient_checkpointing": True},
    "automatic": {"rollout.batch_size": "auto", "train.batch_size": "auto", "policy.offload": True},
}


def config_of(device: str, model: Model, **changes: Any) -> Config:
    settings = {**SMALL, "policy.path": model.folder, "policy.device": device, **changes}
    return load_config([EMBEDDED_RECIPE], [f"{key}={value}" for key, value in settings.items()])


class Killed(Exception):
    pass


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, tmp_path: Path, models: Callable[[str], Model]) -> None:
    """Stopped at the end of iteration 2, and so resumed from the checkpoint of iteration 1.

    On a CPU all bits are equal, which other tests hold. On a GPU some backward passes add up in an order that changes
    from run to run; AdamW divides what that leaves by the square root of gradients near zero. So weights may differ by
    a tenth of one step, which a lost average, a repeated image or other noise would pass.
    """
    config = config_of(GPU, models("flux-kontext"), **KINDS[kind])

    def train(run: str, stop_after: int | None = None) -> None:
        def on_iteration(record: Mapping[str, float]) -> None:
            if record["iteration"] == stop_after:
                raise Killed

        policy = run_training(config, tmp_path / run, on_iteration, Accelerator())
        assert all(weight.device.type == GPU for weight in policy.trainable().values())

    train("whole")
    with pytest.raises(Killed):
        train("resumed", stop_after=2)
    torch.manual_seed(123)  # that a new process begins with
    train("resumed")
    whole, resumed = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "resumed")
    assert whole.keys() == resumed.keys() and any("ema." in name for name in whole)
    for name, expected in whole.items():
        off = (resumed[name] - expected).abs() - 1e-2 * expected.abs()
        assert off.max() < 0.1 * RATE, name
    records = [metrics_of(tmp_path / run) for run in ("whole", "resumed")]
    assert [len(part) for part in records] == [3, 3]
    for one, other in zip(*records, strict=True):
        for key in one.keys() - {"drift", "kl"}:
            assert other[key] == pytest.approx(one[key], rel=1e-2, abs=1e-3), key


@pytest.mark.gpu
def test_the_command_takes_the_gpu_that_is_there(tmp_path: Path) -> None:
    """The embedded model, without policy.device, in a process of its own; then the run that is there, resumed."""
    options = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "customized_grpo", "train"]
    for arguments in (["--out", "run", *options], ["--resume", "run"]):
        environment = {**os.environ, "COLUMNS": "200"}  # that lines stay whole
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "parameters on cuda" in done.stdout
    starts = read_records(tmp_path / "run" / "starts.jsonl")
    assert [start["hardware"]["device"] for start in starts] == [torch.cuda.get_device_name()] * 2
    scores = json.loads((tmp_path / "run" / "evaluation" / "tuned" / "scores.json").read_text())
    assert len(scores["images"]) == 2
