"""The iteration benchmark counts operations and memory correctly and writes its file."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn import functional
from typer import Typer
from typer.testing import CliRunner

from benchmarks.iteration.__main__ import bench, main
from benchmarks.iteration.flops import flop_counter
from benchmarks.iteration.iteration import OURS, RELEASED, STAGES, Stage
from customized_grpo.config.loading import load_config
from customized_grpo.policies.shortcuts import libraries_own

GROUP, STEPS, PAIRS = 3, 3, 1
RANDOM = Path(__file__).parents[2] / "recipes" / "random"
SMALL = [
    "policy.height=32",
    "policy.width=32",
    "policy.reference_sizes=[[32, 32]]",
    "train.updates=1",
    "rollout.pairs=1",
]


@pytest.fixture(scope="module")
def printed() -> Console:
    return Console(record=True, width=160)


@pytest.fixture(scope="module")
def record(printed: Console, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file of a benchmark against one image at a time, and against another setting."""
    sizes = [f"rollout.group_size={GROUP}", f"rollout.steps={STEPS}", f"rollout.pairs={PAIRS}"]
    config, other = (load_config(None, [*SMALL[:4], *sizes, *more]) for more in ([], ["train.batch_size=1"]))
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch, libraries_own():  # so that both shapes have the same operations
        patch.setattr("benchmarks.iteration.peak._SECONDS", 0.02)
        bench(config, other, folder, printed, repeats=1)
    found: dict[str, Any] = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_operations_are_those_of_the_work(record: dict[str, Any]) -> None:
    """Whole groups save the work that images share, and nothing else."""
    measured = {name: {stage: Stage(**one) for stage, one in each.items()} for name, each in record["stages"].items()}
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


@pytest.mark.slow
def test_the_files_contents(record: dict[str, Any], printed: Console) -> None:
    assert set(record["stages"]) == {OURS.name, RELEASED.name, "the settings compared"}
    for stages in record["stages"].values():
        assert tuple(stages) == (*STAGES, "iteration")
        assert all(min(one["seconds"], one["flops"], one["peak_bytes"]) > 0 for one in stages.values())
        assert stages["iteration"]["seconds"] == pytest.approx(sum(stages[stage]["seconds"] for stage in STAGES))
    assert record["peak flops"]["float32"] > 1e8
    assert f"speed-up of {OURS.name} over {RELEASED.name}: " in printed.export_text()


def test_an_unknown_key_is_one_line() -> None:
    app = Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--against", "policy.dtyp=bfloat16"])
    assert done.exit_code == 2 and "policy.dtyp" in done.stderr and done.stderr.count("\n") == 1


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
