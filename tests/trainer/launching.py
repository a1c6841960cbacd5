"""Two processes of a launcher's, and what they leave beside what one process leaves."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from commands import side_by_side
from running import metrics_of, tensors_of

from customized_grpo.config import Config
from customized_grpo.config.loading import save_config

FILES = Path(__file__).parents[2] / "recipes" / "accelerate"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(folder: Path, file: str, plan: Mapping[str, Any], machines: int = 1) -> tuple[int, str]:
    """Run together.py in two processes on the CPU, as if on so many machines; returns (exit code, errors).

    Their environment is that of `accelerate launch` with a file of recipes/accelerate. The launcher itself, and the
    imports of each process, would take longer than the trainings.
    """
    (folder / "plan.json").write_text(json.dumps(plan))
    script, port = Path(__file__).with_name("together.py"), free_port()
    own = ["--num_processes", "2", "--main_process_port", port, "--main_process_ip", "127.0.0.1"]
    given = ["--config_file", str(FILES / file), *own, str(script)]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join([*defaults.deepspeed_config, "mixed_precision"])
        shared = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        shared = prepare_multi_gpu_env(arguments)
    ended = side_by_side(ranks(port, machines, **shared), script, folder / "plan.json", folder=folder)
    return max(abs(one.returncode) for one in ended), "".join(one.stderr for one in ended)


def ranks(port: str, machines: int = 1, **shared: str) -> list[dict[str, str]]:
    """Return the variables by which two processes find each other, as torch's launcher sets them."""
    each = 2 // machines
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(each)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank % each)} for rank in range(2)]


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
) -> None:
    """Two processes train all configurations, then "taken over", on from the older checkpoint of a whole run."""
    runs = [planned(folder, name, config) for name, config in configs.items()]
    runs.append(planned(folder, "taken over", configs[taken_over.name], evaluated=evaluated))
    begun(taken_over, folder / "taken over")
    code, message = launch(folder, file, {"fail": None, "runs": runs}, machines)
    assert code == 0, message[-3000:]


def alike(one: Path, other: Path, *, kl: bool = False, all_weights: bool = False, evaluated: bool = False) -> None:
    """Checkpoints and records, and evaluations of nearly the same weights, are the same but for rounding.

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
    if evaluated:
        single, double = (json.loads((run / "images" / "scores.json").read_text()) for run in (one, other))
        assert single["images"] == double["images"] == sorted(path.name for path in (other / "images").glob("*.png"))
        for name, scores in single["scores"].items():
            assert double["scores"][name] == pytest.approx(scores, rel=1e-3, abs=1e-3)
