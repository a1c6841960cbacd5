"""Two processes of a launcher's, and what they leave beside what one process leaves."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from running import metrics_of, tensors_of

from customized_grpo.config import Config
from customized_grpo.config.loading import save_config

FILES = Path(__file__).parents[2] / "recipes" / "accelerate"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(
    folder: Path, file: str, plan: Mapping[str, Any], machines: int = 1, options: Sequence[str] = ()
) -> tuple[int, str]:
    """Two processes on the CPU by a file of recipes/accelerate, as if on so many machines; exit code, stderr."""
    (folder / "plan.json").write_text(json.dumps(plan))
    options = ["--config_file", str(FILES / file), *options, "--num_processes", "2", "--main_process_port", free_port()]
    if machines > 1:
        options += ["--main_process_ip", "127.0.0.1"]
    script = [str(Path(__file__).with_name("together.py")), str(folder / "plan.json")]
    launchers = []
    for rank in range(machines):
        own = ["--machine_rank", str(rank)] if machines > 1 else []
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, *own, *script]
        launchers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    message = "".join(launcher.communicate(timeout=300)[1] for launcher in launchers)
    return max(abs(launcher.returncode) for launcher in launchers), message


def planned(folder: Path, name: str, config: Config, *, evaluated: bool = False) -> dict[str, Any]:
    save_config(config, folder / f"{name}.yaml")
    return {"config": str(folder / f"{name}.yaml"), "run": str(folder / name), "evaluate": evaluated}


def begun(whole: Path, run: Path) -> None:
    """A run that was stopped after the older checkpoint of a whole one."""
    oldest = min((whole / "checkpoints").iterdir())
    shutil.copytree(oldest, run / "checkpoints" / oldest.name)
    shutil.copy(whole / "metrics.jsonl", run)


def train_together(
    folder: Path,
    file: str,
    configs: Mapping[str, Config],
    *,
    taken_over: Path,
    evaluated: bool = False,
    machines: int = 1,
    options: Sequence[str] = (),
) -> None:
    """Two processes train all configurations, then "taken over", on from the older checkpoint of a whole run."""
    runs = [planned(folder, name, config) for name, config in configs.items()]
    runs.append(planned(folder, "taken over", configs[taken_over.name], evaluated=evaluated))
    begun(taken_over, folder / "taken over")
    code, message = launch(folder, file, {"fail": None, "runs": runs}, machines, options)
    assert code == 0, message[-3000:]


def alike(one: Path, other: Path, *, kl: bool = False, all_weights: bool = False) -> None:
    """Checkpoints and records are the same but for rounding.

    Where all weights are trained, some have a gradient that is only rounding, of which not even the sign is known: one
    of a thousand may be off by whole steps of the rate.
    """
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    for name, expected in first.items():
        # Adam divides rounding by gradients near zero: a tenth of one step of the rate is the least
        # that tells rounding from a share of the gradient that went missing (measured: 2e-5 against 3e-3).
        if all_weights:
            off = (second[name] - expected).abs() > 1e-4 + 1e-3 * expected.abs()
            assert int(off.sum()) <= max(1, off.numel() // 1000), (name, int(off.sum()), off.numel())
            torch.testing.assert_close(second[name], expected, rtol=0, atol=2e-3)
        else:
            torch.testing.assert_close(second[name], expected, rtol=1e-3, atol=1e-4)
    for single, double in zip(metrics_of(one), metrics_of(other), strict=True):
        assert single.keys() == double.keys()
        for key in single.keys() - {"drift"} - (set() if kl else {"kl"}):  # each process measures some of its images
            assert double[key] == pytest.approx(single[key], rel=2e-3, abs=1e-5), key
