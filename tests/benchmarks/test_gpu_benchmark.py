"""The GPU benchmark with a tiny model on a CPU: all of its code runs, and its record is complete."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crashing
import pytest
import tiny
import torch
from commands import cgrpo

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import attention, iteration, model, report
from benchmarks.gpu import sections as benchmark
from benchmarks.gpu.context import Context
from benchmarks.gpu.sections import SECTIONS, Section, named
from benchmarks.gpu.timing import Timing, alternate, ratio
from benchmarks.iteration.flops import flop_counter
from customized_grpo.config import PolicyConfig
from customized_grpo.policies import build_policy
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.policies.shortcuts import libraries_own

#: Sections that take longest with a tiny model, or do as another does.
LONG = [section.name for section in SECTIONS if section.name in ("paper", "default", "compile")]
SHORT = [section.name for section in SECTIONS if section.name not in LONG]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(tmp_path_factory.mktemp("gpu"), SHORT)


def measured(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The record of sections, measured in this process; `cgrpo train` in one that need not import everything."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "customized_grpo"]
        return cgrpo(*command[3:], folder=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.iteration.peak._SECONDS", 0.02)
        patch.setattr(iteration, "subprocess", SimpleNamespace(run=run))
        given = ["--out", str(out), "--tiny", "--time-limit", "1200", "--sections", ",".join(names)]
        assert command.main(given) == 0
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_the_longest_sections_are_measured(tmp_path: Path) -> None:
    complete(measured(tmp_path, LONG), LONG)


def test_every_section_is_measured(record: dict[str, Any]) -> None:
    complete(record, SHORT)


def complete(record: dict[str, Any], names: list[str]) -> None:
    assert record["failures"] == record["skipped"] == {}
    assert list(record["results"]) == names
    assert record["seconds"].keys() == {*record["results"], "total"}
    for name, rows in record["results"].items():
        assert rows and not any("failed" in row for row in rows), (name, rows)
    assert record["tiny"] and shlex.split(record["command"])[:3] == ["python", "-m", "benchmarks.gpu"]
    assert record["machine"]["device"] and record["machine"]["versions"].keys() >= {"torch", "diffusers", "peft"}


def test_layers_are_compared_in_turns_and_shares_are_of_the_peak(record: dict[str, Any]) -> None:
    results = record["results"]
    peak = 1e12 * results["peak"][0]["tflops"]
    for row in (*results["velocity"], *results["training"], *results["launch"]):
        ours, libraries, speed_up = (row[key] for key in ("ours_s_per_image", "libraries_s_per_image", "speed_up"))
        assert ours["repeats"] == libraries["repeats"] == speed_up["repeats"] > 1
        assert 0 < speed_up["min"] <= speed_up["median"] <= speed_up["max"]
    for row in (*results["velocity"], *results["training"]):
        share = 100 * row["flops_per_image"] / row["ours_s_per_image"]["median"] / peak
        assert row["percent_of_peak"] == pytest.approx(share)
    for row in results["training"]:
        useful = row["percent_without_recomputation"] / row["percent_of_peak"]
        assert useful < 0.8 if row["checkpointing"] else useful == 1


def test_an_iteration_is_extrapolated_to_the_recipe(record: dict[str, Any]) -> None:
    rows = record["results"]["kontext"]
    assert [row["way"] for row in rows] == ["ours", "diffusers + peft", "released shape"]
    for row in rows:
        encoded = 96 if row["way"] == "released shape" else 8
        units = {"encode": encoded, "sample": 96 * 25, "decode": 96, "score": 96, "update": 96 * 14, "probe": 1}
        assert row["recipe_units"] == units
        assert row["recipe_s"] == pytest.approx(sum(units[stage] * row["s_per_unit"][stage] for stage in units))
        assert row["speed_up_of_ours"] == pytest.approx(row["recipe_s"] / rows[0]["recipe_s"])
    assert rows[0]["planned_phases_gb"].keys() == rows[0]["phases_gb"].keys()
    assert rows[2]["batch_sizes"] == "1, 1"


def test_equal_batches_have_equal_log_densities(record: dict[str, Any]) -> None:
    rows = record["results"]["ratios"]
    assert any(row["sampled_batch"] != row["trained_batch"] for row in rows)
    assert all(row["max"] == 0 for row in rows if row["sampled_batch"] == row["trained_batch"])
    assert all(0 <= row["mean"] <= row["max"] < 1e-3 for row in rows)


def test_attention_is_exact_where_it_is_available(record: dict[str, Any]) -> None:
    rows = record["results"]["attention"]
    status = {row["backend"]: row["status"] for row in rows if not row["timed"]}
    assert status["native"] == status["math"] == "ok"
    assert status["cudnn"].startswith("unavailable: RuntimeError")
    assert all(row["backward_error"] < 0.02 for row in rows if row["status"] == "ok")
    assert {row["backend"] for row in rows if row["timed"]} >= {"native", "math"}


def test_the_page_contains_every_section(record: dict[str, Any]) -> None:
    skipped = dict(record, results={k: v for k, v in record["results"].items() if k != "peak"}, skipped={"peak": "why"})
    text = report.page(skipped)
    shown = [name for name in SHORT if name != "peak"]
    assert all((f"## {section.title}" in text) == (section.name in shown) for section in SECTIONS)
    assert record["command"] in text and "- Matrix products: skipped, why." in text
    headings, cells = report.table(record["results"]["velocity"])
    assert "ours s per image" in headings and len(cells) == len(record["results"]["velocity"])


@pytest.mark.slow
def test_a_section_that_fails_crashes_or_hangs_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_START_SECONDS", 60.0)
    measures = {"error": crashing.error, "crash": crashing.crash, "last": crashing.rows}
    sections = [Section(name, name, measure, needs=0) for name, measure in measures.items()]
    sections += [Section("hang", "", crashing.hang, needs=-9), Section("long", "", crashing.rows, needs=10_000)]
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "_START_SECONDS", 0.0)
        hung = benchmark.run(
            sections[3:], tmp_path, isolate=True, limit=300, command="", say=print,
            context=Context(tiny=True, folder=tmp_path),
        )  # fmt: skip
    record = benchmark.run(
        sections[:3], tmp_path, isolate=True, limit=300, command="", say=print,
        context=Context(tiny=True, folder=tmp_path),
    )  # fmt: skip
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")) == record
    assert record["results"]["last"] == [{"row": 0}, {"row": 1}]
    assert record["failures"].keys() == {"error", "crash"}
    assert record["failures"]["error"] == "RuntimeError: an error of the section's own; see model.log"
    assert "signal SIGSEGV" in record["failures"]["crash"]
    assert "was killed" in hung["failures"]["hang"]
    assert "needs 10000 s" in hung["skipped"]["long"]
    for found, name in ((record, "error"), (record, "crash"), (hung, "hang")):  # rows of before are kept
        assert found["results"][name] == [{"row": 0}]


def test_an_attention_call_that_ends_its_process_is_reported() -> None:
    call, device = attention.Call("math", 8, 8, 1, 8), torch.device("cpu")
    assert attention.isolated(call, attention.make_call, device)["status"] == "ok"
    crashed = attention.isolated(call, crashing.call, device)
    assert crashed["status"] == "failed in the backward pass: its process ended with signal SIGSEGV"


def test_an_unknown_section_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--sections", "velocity,speed"])
    assert "there is no 'speed'" in capsys.readouterr().err
    assert [section.name for section in named("training,peak")] == ["peak", "training"]


def test_ratios_are_of_neighbours() -> None:
    slower, faster = Timing((4.0, 2.0, 9.0), None), Timing((2.0, 2.0, 3.0), None)
    assert ratio(slower, faster) == {"median": 2.0, "min": 1.0, "max": 3.0, "repeats": 3}
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    alternate(works, torch.device("cpu"), repeats=2, warm=1)
    assert order == list("ababab")


def test_operations_are_extrapolated_from_few_blocks() -> None:
    settings = {"path": "nowhere/at-all", "device": "cpu", "height": 32, "width": 32, "gradient_checkpointing": True}
    policy = build_policy(PolicyConfig.model_validate(settings), tiny.flux_kontext(layers=4))
    assert isinstance(policy, PipelinePolicy)
    latents, sigma = torch.randn(1, *policy.latent_shape), torch.full((1,), 0.5)
    conditions = policy.encode("a red bird", [])

    def work() -> None:
        policy.velocity(latents, sigma, conditions).square().mean().backward()

    with libraries_own(), flop_counter() as counter:
        work()
    assert model.model_flops(policy, work) == counter.get_total_flops() > 0


def test_the_page_is_made_from_the_stored_results(tmp_path: Path) -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.stored()), (
        "run python -m benchmarks.gpu.report"
    )
    (tmp_path / "gpu.json").write_text('{"tiny": true}', encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        report.main([str(tmp_path / "gpu.json")])
