"""A whole study on the embedded models, cut short: run, cut off, gone on with, drawn again."""

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

from customized_grpo.trainer.locking import claim
from customized_grpo.utils.records import append_record, read_records

STUDY = """
seeds: 1
ours: both
front: ["naive 2:1", "naive 1:1"]
grid: ["naive 1:1", both]
gradient_batches: 2
set:
  train.iterations: 2
  train.updates: 1
  train.sample_every: 1
  rollout.steps: 3
  rollout.group_size: 4
  rollout.pairs: 2
  evaluation.data.size: 4
  evaluation.steps: 2
rows:
  both: {}
  "naive 1:1": {set: {method.shaping: none, method.weighting: static}}
  "naive 2:1": {set: {method.shaping: none, method.weighting: static, method.identity_weight: 1.0}}
"""


def study(folder: Path, *options: str, file: str = "study.yaml") -> subprocess.CompletedProcess[str]:
    return cgrpo("-m", "experiments.study", file, "--out", "out", *options, folder=folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    ended = study(folder, "--processes", "2")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "hypervolume" in ended.stdout
    assert "undominated are" in " ".join(ended.stdout.split())
    return folder


def test_every_run_leaves_a_result_and_the_pictures_are_there(done: Path) -> None:
    results = read_records(done / "out/results.jsonl")
    assert sorted(r["row"] for r in results) == ["both", "naive 1:1", "naive 2:1"]
    assert all(r["base"] == results[0]["base"] for r in results), "one base for all rows"
    assert len({json.dumps(r["tuned"]) for r in results}) == 3, "each row learned something of its own"
    assert [i for i, _ in results[0]["curves"]["identity"]] == [0, 1, 2]
    names = ("plane-rewards", "plane-independent", "curves", "quadrants", "gradients", "grid")
    for name in names:
        with Image.open(done / f"out/{name}.png") as picture:
            assert min(picture.size) > 200, name
    evidence = json.loads((done / "out/gradients.json").read_text(encoding="utf-8"))
    cosines = evidence["cosines"]
    assert [c["step"] for c in cosines["naive"]] == [0, 1]
    for cosine in [*cosines["naive"], *cosines["shaped"]]:
        assert -1 <= cosine["low"] <= cosine["high"] <= 1
    for naive, shaped in zip(cosines["naive"], cosines["shaped"], strict=True):
        # What both share pulls them together.
        assert shaped["value"] > naive["value"]
    assert [c["step"] for c in evidence["agreements"]["naive"]] == [0, 1]
    for role in ("identity", "prompt"):
        strengths = evidence["strengths"][role]
        assert [s["step"] for s in strengths] == [0, 1]
        assert sum(s["weight"] for s in strengths) / 2 == pytest.approx(0.5), "as much in all as static weights of 1:1"


def test_gradients_are_measured_without_any_training(done: Path) -> None:
    """The same numbers as at the end of the study, which measures them at the base as well."""
    ended = study(done, "--out", "gradients", "--gradients-only")
    assert ended.returncode == 0, ended.stderr
    told = " ".join(ended.stdout.split())
    evidence = json.loads((done / "gradients/gradients.json").read_text(encoding="utf-8"))
    for curves in (evidence["cosines"], evidence["agreements"], evidence["strengths"]):
        for at in (at for curve in curves.values() for at in curve):
            assert f"{at['value']:+.4f}" in told, "a plain terminal has room for all of it"
    assert "results.jsonl" not in os.listdir(done / "gradients")
    assert (done / "gradients/gradients.json").read_text() == (done / "out/gradients.json").read_text()
    with Image.open(done / "gradients/gradients.png") as picture:
        assert picture.height > 400, "two panels"
    again = study(done, "--out", "gradients", "--gradients-only")
    assert again.returncode == 0, "what is there of these settings is drawn"
    (done / "more.yaml").write_text(STUDY.replace("group_size: 4", "group_size: 5"), encoding="utf-8")
    other = study(done, "--out", "gradients", "--gradients-only", file="more.yaml")
    assert other.returncode == 2 and "was measured with another rollout.group_size" in " ".join(other.stderr.split())
    for options in (("--gradients-only", "--report-only"), ("--at", "out/both/seed-0")):
        refused = study(done, *options)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1


def test_gradients_of_what_a_run_has_learned(done: Path) -> None:
    """They are not those at the base, and say whose they are."""
    options = ("--gradients-only", "--at", "out/both/seed-0")
    refused = study(done, "--out", "out", *options)
    assert refused.returncode == 2 and "gradients.json: was measured with another policy" in refused.stderr
    ended = study(done, "--out", "learned", *options)
    assert ended.returncode == 0, ended.stderr
    assert "at both/seed-0" in " ".join(ended.stdout.split())
    base, learned = (json.loads((done / folder / "gradients.json").read_text()) for folder in ("out", "learned"))
    assert (base["at"], learned["at"]) == ("", "both/seed-0")
    assert base["settings"] == learned["settings"] and base["cosines"] != learned["cosines"]
    unfinished = study(done, "--out", "none", "--gradients-only", "--at", "out")
    assert unfinished.returncode == 2 and "holds no lora; give the folder of a finished run" in unfinished.stderr


def test_a_second_call_runs_what_is_missing_alone(done: Path) -> None:
    path = done / "out/results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if '"both"' not in line]
    path.write_text("".join(kept), encoding="utf-8")
    ended = study(done)
    assert ended.returncode == 0, ended.stderr
    assert "2 of them done" in ended.stdout
    again = set(path.read_text(encoding="utf-8").splitlines(keepends=True))
    assert len(again) == 3
    assert again >= set(kept)


def test_a_study_that_is_asked_to_end_ends_its_runs_and_goes_on_later(tmp_path: Path) -> None:
    """A scheduler's SIGTERM reaches the study alone, not what it has started."""
    (tmp_path / "study.yaml").write_text(STUDY.replace("iterations: 2", "iterations: 500"), encoding="utf-8")
    command = [sys.executable, "-m", "experiments.study", "study.yaml", "--out", "out"]
    asked = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "out/both/seed-0"
    try:
        until = time.monotonic() + 300
        while not (run / "metrics.jsonl").exists():
            assert asked.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        asked.send_signal(signal.SIGTERM)
        told = asked.communicate(timeout=120)[1]
    finally:
        asked.kill()
    assert asked.returncode == 128 + signal.SIGTERM, told
    assert (
        told.splitlines()[-1]
        == "error: out: stopped by SIGTERM, the runs in progress are saved; run the study again to continue"
    )
    with claim(run):  # which its process has left
        done = len(read_records(run / "metrics.jsonl"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"{done:06d}"]
    assert not (tmp_path / "out/results.jsonl").exists()


def test_results_alone_are_enough_for_the_report(done: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    (tmp_path / "out/results.jsonl").write_bytes((done / "out/results.jsonl").read_bytes())
    ended = study(tmp_path, "--report-only")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out/plane-rewards.png").is_file()
    assert (tmp_path / "out/table.md").read_text(encoding="utf-8") == (done / "out/table.md").read_text(
        encoding="utf-8"
    )


def test_the_grid_is_of_a_seed_that_has_all_its_pictures(done: Path, tmp_path: Path) -> None:
    """Where those of the first seed are gone, results of which were brought from elsewhere, the next one is shown."""
    shutil.copytree(done / "out", tmp_path / "out")
    (tmp_path / "study.yaml").write_text(STUDY.replace("seeds: 1", "seeds: 2"), encoding="utf-8")
    first = read_records(tmp_path / "out/results.jsonl")
    for record in first:
        append_record(tmp_path / "out/results.jsonl", {**record, "seed": 1})
    for row in ("both", "naive-1-to-1"):
        shutil.copytree(tmp_path / f"out/{row}/seed-0", tmp_path / f"out/{row}/seed-1")
    shutil.rmtree(tmp_path / "out/both/seed-0/evaluation")
    (tmp_path / "out/grid.png").unlink()
    assert study(tmp_path, "--report-only").returncode == 0
    assert (tmp_path / "out/grid.png").read_bytes() == (done / "out/grid.png").read_bytes()


def test_results_of_other_rows_alone_are_no_results(done: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "study.yaml").write_text(STUDY.replace("both", "renamed").replace("naive ", "plain "), encoding="utf-8")
    (tmp_path / "out/results.jsonl").write_bytes((done / "out/results.jsonl").read_bytes())
    ended = study(tmp_path, "--report-only")
    assert ended.returncode == 2
    assert "contains no results of this study's rows" in " ".join(ended.stderr.split())


def test_other_settings_are_refused_and_nothing_is_lost(done: Path) -> None:
    before = (done / "out/results.jsonl").read_bytes()
    (done / "study.yaml").write_text(STUDY.replace("rollout.steps: 3", "rollout.steps: 4"), encoding="utf-8")
    ended = study(done)
    assert ended.returncode == 2
    assert "was run with another rollout.steps" in " ".join(ended.stderr.split())
    assert (done / "out/results.jsonl").read_bytes() == before


def test_a_run_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    broken = STUDY.replace("  both: {}", "  both: {set: {policy.path: nowhere, data.path: world}}")
    (tmp_path / "study.yaml").write_text(broken, encoding="utf-8")
    ended = study(tmp_path)
    assert ended.returncode == 2
    told = " ".join(ended.stderr.split())
    assert "'both', seed 0" in told
    assert "nowhere" in told
    assert "Traceback" not in told
