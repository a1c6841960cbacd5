"""The iteration benchmark counts operations and memory correctly and writes its file."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from commands import cgrpo
from rich.console import Console
from torch.nn import functional

from benchmarks.iteration.__main__ import bench
from benchmarks.iteration.flops import flop_counter
from benchmarks.iteration.iteration import OURS, RELEASED, STAGES, Stage, measure
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.trainer.assembly import reward_terms

GROUP, STEPS, PAIRS = 3, 3, 2
RANDOM = Path(__file__).parents[2] / "recipes" / "random"
SMALL = [
    "policy.height=32",
    "policy.width=32",
    "policy.reference_sizes=[[32, 32]]",
    "train.updates=1",
    "rollout.pairs=1",
]


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Stage]]:
    sizes = [f"rollout.group_size={GROUP}", f"rollout.steps={STEPS}", f"rollout.pairs={PAIRS}"]
    config = load_config(None, [*SMALL[:4], *sizes])
    policy, dataset = build_policy(config.policy), open_dataset(config.data)
    rewards = reward_terms(config.rewards, policy.device)
    with libraries_own():  # so that both shapes have the same operations
        return measure(config, policy, rewards, [dataset[0], dataset[1]], (OURS, RELEASED), 1)


def test_operations_are_those_of_the_work(measured: dict[str, dict[str, Stage]]) -> None:
    """Whole groups save the work that images share, and nothing else."""
    for stages in measured.values():
        assert tuple(stages) == STAGES
        assert all(stage.seconds > 0 and stage.flops > 0 and stage.peak_bytes > 0 for stage in stages.values())
    ours, released = measured[OURS.name], measured[RELEASED.name]
    images = PAIRS * GROUP
    assert released["encode"].flops == GROUP * ours["encode"].flops
    calls = PAIRS + images * (STEPS - 1)  # a group's first step is computed once
    assert released["sample"].flops / ours["sample"].flops == pytest.approx(images * STEPS / calls)
    assert released["decode"].flops == ours["decode"].flops
    trained = PAIRS + images * (STEPS - 2)
    assert released["update"].flops / ours["update"].flops == pytest.approx(images * (STEPS - 1) / trained, rel=0.01)
    forward = ours["sample"].flops / calls
    assert 1.8 < ours["update"].flops / trained / forward < 3
    for stage in ("sample", "update"):
        assert ours[stage].peak_bytes > 2 * released[stage].peak_bytes


def test_the_files_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.iteration.peak._SECONDS", 0.02)
    small = [*SMALL, "rollout.group_size=2", "rollout.steps=2"]
    console = Console(record=True, width=160)
    bench(load_config(None, small), load_config(None, [*small, "policy.dtype=bfloat16"]), tmp_path, console, repeats=1)
    record = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert set(record["stages"]) == {OURS.name, RELEASED.name, "the settings compared"}
    for stages in record["stages"].values():
        assert tuple(stages) == (*STAGES, "iteration")
        assert stages["iteration"]["seconds"] == pytest.approx(sum(stages[stage]["seconds"] for stage in STAGES))
    assert record["peak flops"]["float32"] > 1e8
    assert f"speed-up of {OURS.name} over {RELEASED.name}: " in console.export_text()


def test_an_unknown_key_is_one_line(tmp_path: Path) -> None:
    done = cgrpo("-m", "benchmarks.iteration", "--against", "policy.dtyp=bfloat16", folder=tmp_path)
    assert done.returncode == 2 and "policy.dtyp" in done.stderr and "Traceback" not in done.stderr


def test_random_weights_of_flux_are_measured_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark of a large GPU in small: the same script and settings."""
    monkeypatch.setattr("benchmarks.iteration.peak._SECONDS", 0.02)
    made = runpy.run_path(str(RANDOM / "flux1.py"))["pipeline"](tiny=True)
    made.save_pretrained(tmp_path / "models" / "random-flux1")
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "policy.max_sequence_length=16", "rollout.steps=2", "rollout.group_size=2"]
    bench(load_config([RANDOM / "flux1.yaml"], small), None, Path("out"), Console(), repeats=1, alone=True)
    record = json.loads((tmp_path / "out/bench.json").read_text(encoding="utf-8"))
    assert set(record["stages"]) == {OURS.name} and record["precisions"] == {OURS.name: "bfloat16"}


def test_operations_of_cpu_kernels_are_counted() -> None:
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(2))
    with flop_counter() as counter:
        attended = functional.scaled_dot_product_attention(query, key, value)
    forward = counter.get_total_flops()
    assert forward == 2 * (2 * 2 * 3 * 5 * 7 * 8)
    with flop_counter() as counter:
        attended.sum().backward()
    assert counter.get_total_flops() == 2.5 * forward  # five products, of which one computes the scores again
