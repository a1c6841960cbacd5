"""What a run keeps for its report is what it did; what is missing is said, not guessed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import cgrpo
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.evaluation import read_evaluation
from customized_grpo.reporting import collect
from customized_grpo.reporting.page import render
from customized_grpo.reporting.results import outcome
from customized_grpo.trainer.folder import open_run
from customized_grpo.utils.records import read_records


def test_a_finished_run_is_read_whole(trained: Path) -> None:
    run = collect(trained, open_run(trained))
    assert run.finished and run.notes == []
    assert [record["iteration"] for record in run.records] == [0, 1, 2, 3]
    assert [kept.iteration for kept in run.samples.values()] == [0, 1, 2, 3]
    assert [kept.iteration for kept in run.groups.values()] == [1, 2, 3]
    changed = {change.key: (change.default, change.value) for change in run.changes}
    assert changed["rollout.pairs"] == ("4", "2") and changed["train.iterations"] == ("60", "3")
    assert "train.learning_rate" not in changed
    (start,) = run.starts
    assert start["versions"]["torch"] and start["hardware"]["device"]


def test_kept_scores_are_those_of_the_evaluation_and_of_the_log(trained: Path) -> None:
    run = collect(trained, open_run(trained))
    tuned = read_evaluation(trained / "evaluation/tuned", run.config.evaluation)
    assert tuned is not None
    *_, last = run.samples.values()
    for i, sample in enumerate(last.pairs):
        assert sample.scores == {name: values[i] for name, values in tuned.scores.items()}
    # Both of the iteration's two groups are kept, so that their means are the log's.
    for folder, kept in run.groups.items():
        assert [group.rank for group in kept.groups] == ["best", "worst"] and kept.drawn == 2
        record = run.records[kept.iteration]
        for name in ("identity", "prompt"):
            values = [value for group in kept.groups for value in group.scores[name]]
            assert sum(values) / len(values) == pytest.approx(record[f"reward/{name}/mean"], rel=1e-5)
            for group in kept.groups:
                assert sum(group.advantages[name]) == pytest.approx(0, abs=1e-4)
                assert len(group.learned) == len(group.pictures) == 3
        for name in kept.groups[0].pictures:
            with Image.open(folder / name) as picture:
                assert picture.size == (64, 64)


def test_the_outcome_is_that_of_the_scores(trained: Path) -> None:
    run = collect(trained, open_run(trained))
    found = outcome(run)
    assert found is not None and found.pairs == 2 and set(found.planes) == {"rewards", "independent"}
    kept = {
        n: json.loads((trained / f"evaluation/{n}/scores.json").read_text(encoding="utf-8")) for n in ("base", "tuned")
    }
    for name, score in found.scores.items():
        assert score.base == pytest.approx(kept["base"]["means"][name])
        assert score.change == pytest.approx(kept["tuned"]["means"][name] - kept["base"]["means"][name])
        assert score.low is not None and score.high is not None and score.low <= score.change <= score.high
        first, second = (
            after - before
            for before, after in zip(kept["base"]["scores"][name], kept["tuned"]["scores"][name], strict=True)
        )
        # Of two values the standard error of the mean is half their distance.
        assert score.high - score.low == pytest.approx(2 * 1.96 * abs(first - second) / 2, rel=1e-6, abs=1e-9)


def test_an_unfinished_run_is_told_as_one(copied: Callable[[], Path]) -> None:
    run = copied()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0] + lines[1][:40], encoding="utf-8")  # killed while it wrote
    shutil.rmtree(run / "evaluation/tuned")
    (run / "groups/iteration-000001/index.json").write_text("{", encoding="utf-8")
    found = collect(run, open_run(run))
    assert found.iterations == 1 and not found.finished
    assert [kept.iteration for kept in found.samples.values()] == [0, 1], "what is to be drawn again is left out"
    assert found.groups == {}
    assert found.notes == [
        "This run is not finished: 1 of 3 iterations are done.",
        "The tuned model has not been evaluated yet.",
    ]
    page = render(found)
    assert "Not evaluated yet" in page and "1 of 3 iterations are done" in page


def test_a_run_that_has_only_begun(copied: Callable[[], Path]) -> None:
    run = copied()
    for path in run.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = collect(run, open_run(run))
    assert found.records == [] and found.iterations == 0
    assert "0 of 3 iterations" in render(found)


def test_pictures_that_are_gone_leave_the_rest(copied: Callable[[], Path]) -> None:
    run = copied()
    (run / "samples/iteration-000002/00000.jpg").unlink()
    (run / "groups/iteration-000003/best-000.jpg").write_bytes(b"no picture")
    page = render(collect(run, open_run(run)))
    assert "not drawn at iteration 2" in page
    assert "worst group of iteration 3" in page and "best group of iteration 3" not in page


def test_an_evaluation_of_other_settings_is_named(copied: Callable[[], Path]) -> None:
    run = copied()
    for name in ("base", "tuned"):
        path = run / "evaluation" / name / "scores.json"
        kept = json.loads(path.read_text(encoding="utf-8"))
        kept["settings"]["steps"] += 1
        path.write_text(json.dumps(kept), encoding="utf-8")
    found = collect(run, open_run(run))
    assert found.tuned is not None
    assert found.notes == ["The evaluation was drawn with other settings than the run's own."]


def test_the_command_writes_where_it_is_told_and_names_what_is_wrong(copied: Callable[[], Path]) -> None:
    run = copied()
    out = run.parent / "deep/page.html"
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    records = (run / "metrics.jsonl").read_text(encoding="utf-8")
    for damaged, told in (
        ("no record\n" + records, "metrics.jsonl:1"),
        ('{"kl": 1}\n' + records, "iteration is missing"),
    ):
        (run / "metrics.jsonl").write_text(damaged, encoding="utf-8")
        done = CliRunner().invoke(app, ["report", str(run)])
        assert done.exit_code == 2 and done.stderr.startswith("error: ") and told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = CliRunner().invoke(app, ["report", "nowhere"])
    assert done.exit_code == 2 and "nowhere: holds no config.yaml" in done.stderr


def test_a_resumed_run_keeps_both_starts(copied: Callable[[], Path], trained: Path) -> None:
    run = copied()
    shutil.copytree(trained / "checkpoints", run / "checkpoints")
    before = read_records(run / "metrics.jsonl")
    pictures = {path: path.read_bytes() for kind in ("groups", "samples") for path in (run / kind).rglob("*.jpg")}
    shutil.rmtree(run / "checkpoints/000003")
    for path in run.glob("*/iteration-000003"):
        shutil.rmtree(path)
    (run.parent / "pairs.jsonl").write_bytes((trained.parent / "pairs.jsonl").read_bytes())
    for picture in trained.parent.glob("*.jpg"):
        shutil.copy(picture, run.parent)
    done = cgrpo("train", "--resume", "run", folder=run.parent)
    assert done.returncode == 0, done.stderr
    assert [start["iterations done"] for start in collect(run, open_run(run)).starts] == [0, 2]
    for one, other in zip(before, read_records(run / "metrics.jsonl"), strict=True):
        untimed = [{k: v for k, v in r.items() if not k.startswith("seconds/")} for r in (one, other)]
        assert untimed[0] == untimed[1]
    assert {path: path.read_bytes() for path in pictures} == pictures
