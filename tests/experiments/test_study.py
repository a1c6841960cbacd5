"""A whole study on the embedded models, shortened: run, interrupted, continued, reported again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import cgrpo
from PIL import Image
from rich.console import Console

from customized_grpo.config import ConfigError
from customized_grpo.trainer.locking import claim
from customized_grpo.utils.records import append_record, read_records
from experiments.study.__main__ import measure_gradients, run_study
from experiments.study.seconds import main as measure_seconds
from experiments.study.seconds import read_seconds

pytestmark = pytest.mark.usefixtures("quick_figures")

STUDY = """
seeds: 1
ours: both
front: ["naive 1:1"]
grid: ["naive 1:1", both]
gradient_batches: 2
set:
  train.iterations: 1
  train.updates: 1
  train.sample_every: 1
  rollout.steps: 3
  rollout.group_size: 4
  rollout.pairs: 1
  evaluation.data.size: 4
  evaluation.steps: 2
rows:
  both: {}
  "naive 1:1": {set: {method.shaping: none, method.weighting: static}}
"""


def study(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return cgrpo(Path(__file__).with_name("forked_study.py"), "study.yaml", "--out", "out", *options, folder=folder)


def report(folder: Path, text: str = STUDY) -> None:
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    run_study(folder / "study.yaml", folder / "out", 1, Console(), report_only=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    ended = study(folder, "--processes", "2")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "hypervolume" in ended.stdout
    assert "undominated are" in " ".join(ended.stdout.split())
    return folder


def test_every_run_leaves_a_result_and_the_figures_are_there(done: Path) -> None:
    results = read_records(done / "out/results.jsonl")
    assert sorted(r["row"] for r in results) == ["both", "naive 1:1"]
    assert all(r["base"] == results[0]["base"] for r in results), "one base for all rows"
    assert len({json.dumps(r["tuned"]) for r in results}) == 2, "each row is trained in its own way"
    assert [i for i, _ in results[0]["curves"]["identity"]] == [0, 1]
    for name in ("plane-rewards", "plane-independent", "curves", "quadrants", "gradients", "grid"):
        with Image.open(done / f"out/{name}.png") as image:
            assert min(image.size) > 200, name
    evidence = json.loads((done / "out/gradients.json").read_text(encoding="utf-8"))
    for naive, shaped in zip(evidence["cosines"]["naive"], evidence["cosines"]["shaped"], strict=True):
        assert -1 <= naive["low"] <= naive["high"] <= 1
        assert shaped["value"] > naive["value"], "the shared bonus brings the roles closer"
    for role in ("identity", "prompt"):
        strengths = evidence["strengths"][role]
        assert [s["step"] for s in strengths] == [0, 1]
        assert sum(s["weight"] for s in strengths) / 2 == pytest.approx(0.5), "the total of static weights 1:1"


@pytest.mark.slow
def test_gradients_are_measured_without_any_training(done: Path, tmp_path: Path) -> None:
    """The numbers are those of the study, which also measures at the base; at a run's policy they are others."""
    console = Console(record=True, width=160)
    measure_gradients(done / "study.yaml", tmp_path / "base", console)
    printed, evidence = console.export_text(), json.loads((tmp_path / "base/gradients.json").read_text("utf-8"))
    for curves in (evidence["cosines"], evidence["agreements"], evidence["strengths"]):
        assert all(f"{at['value']:+.4f}" in printed for curve in curves.values() for at in curve)
    assert not (tmp_path / "base/results.jsonl").exists()
    assert evidence == json.loads((done / "out/gradients.json").read_text("utf-8"))
    (tmp_path / "more.yaml").write_text(STUDY.replace("group_size: 4", "group_size: 5"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"was measured with another rollout\.group_size"):
        measure_gradients(tmp_path / "more.yaml", tmp_path / "base", console)
    run = done / "out/both/seed-0"
    with pytest.raises(ConfigError, match=r"gradients\.json: was measured with another policy"):
        measure_gradients(done / "study.yaml", tmp_path / "base", console, run)
    measure_gradients(done / "study.yaml", tmp_path / "learned", console, run)
    learned = json.loads((tmp_path / "learned/gradients.json").read_text("utf-8"))
    assert learned["at"] == "both/seed-0" and learned["settings"] == evidence["settings"]
    assert learned["cosines"] != evidence["cosines"]
    for options in (("--gradients-only", "--report-only"), ("--at", "out/both/seed-0")):
        refused = study(done, *options)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1


def test_a_second_call_runs_only_what_is_missing(done: Path) -> None:
    path = done / "out/results.jsonl"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if '"both"' not in line]
    path.write_text("".join(kept), encoding="utf-8")
    ended = study(done)
    assert ended.returncode == 0 and "1 of them done" in ended.stdout, ended.stderr
    again = set(path.read_text(encoding="utf-8").splitlines(keepends=True))
    assert len(again) == 2 and again >= set(kept)


@pytest.mark.slow
def test_a_sigterm_stops_a_studys_runs_with_their_checkpoints(tmp_path: Path) -> None:
    """A scheduler's SIGTERM reaches the study alone, not its child processes."""
    (tmp_path / "study.yaml").write_text(STUDY.replace("iterations: 1", "iterations: 500"), encoding="utf-8")
    command = [sys.executable, "-m", "experiments.study", "study.yaml", "--out", "out"]
    requested = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},  # `experiments` is in the clone only
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "out/both/seed-0"
    try:
        until = time.monotonic() + 300
        while not (run / "metrics.jsonl").exists():
            assert requested.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        requested.send_signal(signal.SIGTERM)
        error = requested.communicate(timeout=120)[1]
    finally:
        requested.kill()
    assert requested.returncode == 128 + signal.SIGTERM, error
    assert error.splitlines()[-1].startswith("out: stopped by SIGTERM, the runs in progress are saved")
    with claim(run):  # released by its process
        iterations = len(read_records(run / "metrics.jsonl"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"{iterations:06d}"]
    assert not (tmp_path / "out/results.jsonl").exists()


@pytest.mark.slow
def test_seconds_of_an_iteration_are_measured_by_row(tmp_path: Path) -> None:
    adaptive = STUDY.replace("both: {}", "both: {set: {method.weighting: adaptive, validation.per_iteration: 2}}")
    (tmp_path / "study.yaml").write_text(adaptive, encoding="utf-8")
    measure_seconds(tmp_path / "study.yaml", tmp_path / "out", iterations=2, rounds=1)
    assert read_seconds(tmp_path / "out").keys() == {"both", "naive 1:1"}
    assert all(value > 0 for value in read_seconds(tmp_path / "out").values()) and not read_seconds(tmp_path)


def test_results_alone_are_enough_for_the_report(done: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(done / "out/results.jsonl", tmp_path / "out")
    report(tmp_path)
    assert (tmp_path / "out/plane-rewards.png").is_file()
    assert (tmp_path / "out/table.md").read_bytes() == (done / "out/table.md").read_bytes()
    tables = [(tmp_path / f"out/{name}.md").read_text("utf-8").splitlines()[2:] for name in ("table", "progress")]
    for final, last in zip(*tables, strict=True):  # the only evaluation is the last one
        row, seeds, at, _, _, area = final.split("|")[1], *last.split("|")[2:7]
        assert last.split("|")[1] == row and (int(seeds), int(at)) == (1, 1) and area in final
    with pytest.raises(ConfigError, match="contains no results of this study's rows"):
        report(tmp_path, STUDY.replace("both", "renamed").replace("naive ", "plain "))


def test_the_grid_is_of_a_seed_that_has_all_its_images(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "out", tmp_path / "out")
    for record in read_records(tmp_path / "out/results.jsonl"):
        append_record(tmp_path / "out/results.jsonl", {**record, "seed": 1})
    for row in ("both", "naive-1-to-1"):
        shutil.copytree(tmp_path / f"out/{row}/seed-0", tmp_path / f"out/{row}/seed-1")
    shutil.rmtree(tmp_path / "out/both/seed-0/evaluation")
    (tmp_path / "out/grid.png").unlink()
    report(tmp_path, STUDY.replace("seeds: 1", "seeds: 2"))
    assert (tmp_path / "out/grid.png").read_bytes() == (done / "out/grid.png").read_bytes()


def test_other_settings_and_failing_runs_are_one_line(done: Path, tmp_path: Path) -> None:
    before = (done / "out/results.jsonl").read_bytes()
    (tmp_path / "study.yaml").write_text(STUDY.replace("rollout.steps: 3", "rollout.steps: 4"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"was run with another rollout\.steps"):
        run_study(tmp_path / "study.yaml", done / "out", 1, Console())
    assert (done / "out/results.jsonl").read_bytes() == before
    broken = STUDY.replace("  both: {}", "  both: {set: {policy.path: nowhere, data.path: world}}")
    (tmp_path / "study.yaml").write_text(broken, encoding="utf-8")
    ended = study(tmp_path)
    error = " ".join(ended.stderr.split())
    assert ended.returncode == 2 and "'both', seed 0" in error and "nowhere" in error and "Traceback" not in error
