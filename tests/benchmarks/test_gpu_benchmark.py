"""The benchmark for a GPU, with a tiny model on a CPU: all of its code runs, and its record is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from crashing import crash

from benchmarks.gpu import attention, model, page
from benchmarks.gpu.goals import goals
from benchmarks.gpu.planned import difference
from benchmarks.gpu.sections import DEBUG, SECTIONS, Section, named
from benchmarks.gpu.tables import markdown, tables
from benchmarks.gpu.timing import Timing, alternate, ratio
from benchmarks.iteration.flops import flop_counter
from customized_grpo.config import PolicyConfig
from customized_grpo.policies import build_policy
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.policies.shortcuts import libraries_own

ROOT = Path(__file__).parents[2]
#: Sections that have no row of a GPU's alone.
PAIRED = ("velocity", "training", "launch")


def benchmark(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--tiny", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, timeout=1200)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The record of all sections, and what was printed."""
    out = tmp_path_factory.mktemp("gpu")
    done = benchmark(out, "--time-limit", "1200")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "gpu.json").read_text(encoding="utf-8")), done.stdout


def test_every_section_is_measured(run: tuple[dict[str, Any], str]) -> None:
    record, printed = run
    assert record["failures"] == record["skipped"] == {}
    assert list(record["results"]) == [section.name for section in SECTIONS]
    assert record["seconds"].keys() == {*record["results"], "total"}
    for section in SECTIONS:
        rows = record["results"][section.name]
        assert rows and not any("failed" in row for row in rows), (section.name, rows)
        assert section.title in printed
    assert record["tiny"] and record["command"].startswith("python -m benchmarks.gpu --out ")
    assert record["machine"]["device"] and record["machine"]["versions"].keys() >= {"torch", "diffusers", "peft"}


def test_ways_are_paired_and_shares_are_of_the_peak(run: tuple[dict[str, Any], str]) -> None:
    results = run[0]["results"]
    peak = 1e12 * results["peak"][0]["tflops"]
    for name in PAIRED:
        for row in results[name]:
            for way in ("ours", "libraries", "speed_up"):
                assert 0 < row[way]["min"] <= row[way]["median"] <= row[way]["max"]
            assert row["speed_up"]["repeats"] == row["ours"]["repeats"] == row["libraries"]["repeats"] > 1
    for row in (*results["velocity"], *results["training"]):
        share = 100 * row["flops_per_image"] / row["ours"]["median"] / peak
        assert row["ours_share"] == pytest.approx(share)
    checkpointed = [row for row in results["training"] if row["checkpointing"]]
    kept = [row for row in results["training"] if not row["checkpointing"]]
    assert checkpointed and all(row["useful_share"] < 0.8 * row["ours_share"] for row in checkpointed)
    assert kept and all(row["useful_share"] == row["ours_share"] for row in kept)


def test_an_iteration_is_extrapolated_as_its_formula_says(run: tuple[dict[str, Any], str]) -> None:
    for name, trained in (("kontext", 14), ("paper", 14)):
        rows = run[0]["results"][name]
        assert [row["way"] for row in rows] == ["ours", "diffusers + peft", "released shape"]
        for row in rows:
            unit, images = row["seconds_per_unit"], row["recipe_images"]
            assert (images, row["recipe_steps"], row["recipe_trained_steps"]) == (96, 25, trained)
            encoded = 96 if row["way"] == "released shape" else 8
            each = 25 * unit["sample"] + trained * unit["update"] + unit["decode"] + unit["score"]
            assert row["recipe_seconds"] == pytest.approx(encoded * unit["encode"] + images * each + unit["probe"])
            assert row["speed_up"] == pytest.approx(row["recipe_seconds"] / rows[0]["recipe_seconds"])
        assert rows[0]["planned_phases_gb"].keys() == rows[0]["phases_gb"].keys()
        assert rows[2]["batch_sizes"] == "1, 1"


def test_equal_batches_have_equal_log_densities(run: tuple[dict[str, Any], str]) -> None:
    rows = run[0]["results"]["ratios"]
    assert {row["sampler"]: row["eta"] for row in rows} == {"dance": 0.4, "flow": 0.7}
    assert any(row["sampled"] != row["trained"] for row in rows)
    assert all(row["largest"] == 0 for row in rows if row["sampled"] == row["trained"])
    assert all(0 <= row["mean"] <= row["largest"] < 1e-3 for row in rows)


def test_attention_is_exact_where_it_is_there(run: tuple[dict[str, Any], str]) -> None:
    rows = run[0]["results"]["attention"]
    status = {row["backend"]: row["status"] for row in rows if not row.get("timed")}
    assert status["native"] == status["math"] == "ok"
    assert status["cudnn"].startswith("unavailable: RuntimeError")
    assert all(row["backward_error"] < 0.02 for row in rows if row["status"] == "ok")
    assert {row["backend"] for row in rows if row.get("timed")} >= {"native", "math"}


def test_tables_show_every_row(run: tuple[dict[str, Any], str]) -> None:
    record = run[0]
    shown = {section.name: rows for section, _, rows in tables(record)}
    assert {name: len(rows) for name, rows in shown.items()} == {
        name: len(rows) for name, rows in record["results"].items()
    }
    text = page.page(record)
    assert markdown(record) in text and record["command"] in text
    assert all(f"## {section.title}" in text for section in SECTIONS)
    assert "What was not measured" in text


def test_a_section_that_fails_crashes_or_hangs_stops_no_other(tmp_path: Path) -> None:
    names = ",".join(section.name for section in DEBUG)
    done = benchmark(tmp_path, "--sections", names, "--time-limit", "300", BENCHMARKS_GPU_DEBUG="1")
    record = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert done.returncode == 1
    assert record["results"]["debug-rows"] == record["results"]["debug-last"] == [{"row": 0}, {"row": 1}]
    assert record["failures"]["debug-error"]["error"] == "RuntimeError: an error of the section's own"
    assert "SIGSEGV" in record["failures"]["debug-crash"]["error"]
    assert "killed" in record["failures"]["debug-hang"]["error"]
    for name in ("debug-error", "debug-crash", "debug-hang"):  # what was measured before is kept
        assert record["results"][name] == [{"row": 0}]
    assert record["skipped"].keys() == {"debug-long"} and "needs 10000 s" in record["skipped"]["debug-long"]


def test_an_optional_section_leaves_time_for_those_after_it() -> None:
    section = Section("small", "Small", "model", needs=10, limit=20, measure="", optional=True)
    assert section.shortage(left=30, later=20) is None
    assert section.shortage(left=29, later=20) == "29 s were left, it needs 10 s and 20 s are for sections after it"
    assert replace(section, optional=False).shortage(left=29, later=20) is None


def test_a_section_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--sections", "velocity,speed")
    assert done.returncode == 2 and "there is no 'speed'" in done.stderr and "Traceback" not in done.stderr
    assert [section.name for section in named(["training", "peak"])] == ["peak", "training"]


def test_an_attention_call_that_ends_its_process_is_reported() -> None:
    calls = [attention.Call(backend, 8, 8, 1, 8) for backend in ("fine", "crash", "fine")]
    rows = list(attention.isolated(calls, torch.device("cpu"), 1, crash))
    assert [row["status"] for row in rows] == ["ok", "failed in the backward pass: signal SIGSEGV", "ok"]


def test_a_wrong_result_is_seen() -> None:
    given = [part.detach() for part in attention._given(attention.Call("math", 4, 6, 2, 8), torch.device("cpu"))]
    expected = attention._exact(given, torch.ones(1, 2, 4, 8))[0]
    assert attention._distance(expected, expected) == 0
    assert attention._distance(-expected, expected) == pytest.approx(2)


def test_ratios_are_of_neighbours() -> None:
    slower, faster = Timing((4.0, 2.0, 9.0), None), Timing((2.0, 2.0, 3.0), None)
    assert ratio(slower, faster) == {"median": 2.0, "min": 1.0, "max": 3.0, "repeats": 3}
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    alternate(ways, torch.device("cpu"), repeats=2, warm=1)
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
    assert model._flops(policy, work) == counter.get_total_flops() > 0


def test_goals_are_held_against_results() -> None:
    nothing = goals({})
    assert all(goal["reached"] is None and goal["met"] is None for goal in nothing)
    found = goals(
        {
            "velocity": [{"batch": 1, "ours_share": 50.0}, {"batch": 2, "ours_share": 66.0}, {"failed": "memory"}],
            "kontext": [{"way": "ours", "speed_up": 1.0, "plan_difference": -12.0}, {"way": "released shape"}],
        }
    )
    assert [goal["met"] for goal in found] == [True, None, None, None, False]
    assert found[-1]["reached"] == 12.0
    assert difference(110, 100) == pytest.approx(10) and difference(110, None) is None


def test_the_page_is_that_of_the_stored_results() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.stored()), "run python -m benchmarks.gpu.page"
    assert page.stored() is not None or "Not measured yet" in page.PAGE.read_text(encoding="utf-8")


def test_a_tiny_run_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"tiny": true}', encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gpu.page", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--tiny" in done.stderr
