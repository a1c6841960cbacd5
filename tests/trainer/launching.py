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
from safetensors.torch import load_file

from customized_grpo.config import Config
from customized_grpo.config.loading import save_config
from customized_grpo.trainer.checkpoint import newest_checkpoint
from customized_grpo.utils.records import read_records

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
    told = "".join(launcher.communicate(timeout=300)[1] for launcher in launchers)
    return max(abs(launcher.returncode) for launcher in launchers), told


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
    code, told = launch(folder, file, {"fail": None, "runs": runs}, machines, options)
    assert code == 0, told[-3000:]


def same(one: Path, other: Path, *, kl: bool = False, all_weights: bool = False) -> None:
    """The newest checkpoints hold the same, and the records say the same, but for rounding.

    Where all weights are tuned, some have a gradient that is nothing but rounding, of which not even the sign is told:
    one of a thousand may be off by whole steps of the rate.
    """
    checkpoints = [newest_checkpoint(run / "checkpoints") for run in (one, other)]
    assert None not in checkpoints
    first, second = ({f.name: load_file(f) for f in c.rglob("*.safetensors")} for c in checkpoints if c is not None)
    assert first.keys() == second.keys() and len(first) == 2
    for name, tensors in first.items():
        assert tensors.keys() == second[name].keys()
        for key in tensors.keys() - {"rng"}:
            # Adam divides rounding by gradients near zero: a tenth of one step of the rate is the least
            # that tells rounding from a share of the gradient that went missing (measured: 2e-5 against 3e-3).
            expected, found = tensors[key], second[name][key]
            if all_weights:
                off = (found - expected).abs() > 1e-4 + 1e-3 * expected.abs()
                assert int(off.sum()) <= max(1, off.numel() // 1000), (name, key, int(off.sum()), off.numel())
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
            else:
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for single, double in zip(*(read_records(run / "metrics.jsonl") for run in (one, other)), strict=True):
        assert single.keys() == double.keys()
        for key in (
            single.keys() - {"drift"} - (set() if kl else {"kl"})
        ):  # of some images of each, where it is not trained on
            if not key.startswith("seconds/"):
                assert double[key] == pytest.approx(single[key], rel=2e-3, abs=1e-5), key
