"""Comparison of systems: differences worked by hand, the files, and the command as a user types it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.config import ConfigError
from customized_grpo.data import DataError
from customized_grpo.data.benchmark import Case
from customized_grpo.data.dreambench import LIST
from customized_grpo.evaluation.dreambench import compare, open_task
from customized_grpo.evaluation.dreambench.comparison import shown_cases
from customized_grpo.evaluation.dreambench.scores import Scores

REAL = Path(os.environ.get("DREAMBENCH", Path(__file__).parents[4] / "shared" / "dreambench"))
NAN = float("nan")


def scores(**subjects: list[float]) -> Scores:
    cases = tuple(Case(subject, 0, "", "place") for subject in subjects)
    return Scores(cases, {"x": list(subjects.values())})


def test_differences_are_paired_by_subject() -> None:
    one, other = scores(a=[1.0, 3.0], b=[10.0], c=[5.0]), scores(a=[1.0], b=[9.5, 8.5], c=[NAN])
    found = one.above(other, "x")
    assert found is not None
    assert found.mean == pytest.approx(1.0), "2 - 1 and 10 - 9; c has no score on one side"
    assert (found.low, found.high) == (1.0, 1.0), "both subjects agree"
    assert one.above(other, "x", "style") is None


@pytest.mark.parametrize(
    ("subjects", "prompts", "seen"),
    [(30, 25, (6, 6)), (1, 25, (1, 6)), (96, 1, (6, 1)), (2, 4, (2, 3))],
)
def test_the_grid_shows_many_subjects_and_many_prompts(subjects: int, prompts: int, seen: tuple[int, int]) -> None:
    shown = shown_cases([Case(f"{s}", p, "") for s in range(subjects) for p in range(prompts)])
    assert (len({case.subject for case in shown}), len({case.prompt for case in shown})) == seen
    assert len(set(shown)) == len(shown) == min(6, subjects * prompts)


@pytest.mark.usefixtures("quick_figures")
def test_a_comparison(tmp_path: Path, dreambench: Path, protocol: Path, recipe: Path, tuned: Path) -> None:
    """The base model, a tuned one, and images of one colour."""
    for subject in ("rex", "plush", "brolly"):
        (tmp_path / "red" / subject).mkdir(parents=True)
        for name in ("00_0", "00_1", "01_0", "01_1", "02_0", "02_1"):
            Image.new("RGB", (16, 16), "red").save(tmp_path / "red" / subject / f"{name}.png")
    task, out = open_task(str(dreambench), protocol=str(protocol)), tmp_path / "out"
    compare([str(recipe), str(tuned), str(tmp_path / "red")], task, out, Console(file=io.StringIO(), width=160))
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert list(found["systems"]) == ["base", "tuned", "red"]
    pairs = [(one["of"], one["to"]) for one in found["differences"]]
    assert pairs == [("tuned", "base"), ("red", "base"), ("red", "tuned")]
    means = {name: one["overall"]["redness"]["mean"] for name, one in found["systems"].items()}
    assert means["red"] == pytest.approx(100)
    assert found["systems"]["red"]["overall"]["diversity (DINO-I)"]["mean"] == pytest.approx(0, abs=1e-3)
    for one in found["differences"]:
        change = one["overall"]["redness"]
        assert change["mean"] == pytest.approx(means[one["of"]] - means[one["to"]])
        assert change["low"] <= change["mean"] <= change["high"]
    for name in ("plane.png", "grid.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300, name
    lines = (out / "table.md").read_text(encoding="utf-8").splitlines()
    assert "| prompts | score | base | tuned | red | tuned - base | red - base |" in lines
    row = next(line for line in lines if line.startswith("| overall | redness"))
    assert "| 100.00 |" in row, "red is red, and all subjects agree"
    assert row.split(" | ")[-1].startswith("**+"), "far redder than the base"
    assert sum(line.startswith("| accessory |") for line in lines) == 4
    assert any("too narrow" in line for line in lines), "three subjects are few"


def test_problems_are_reported_before_anything_is_generated(
    dreambench: Path, protocol: Path, recipe: Path, tmp_path: Path
) -> None:
    task, console, out = open_task(str(dreambench), protocol=str(protocol)), Console(file=io.StringIO()), tmp_path / "o"
    (tmp_path / "theirs").mkdir()
    for given, text in [
        ([str(recipe)], "two or more"),
        ([str(recipe)] * 2, "two systems are named 'base'"),
        ([str(recipe), f"../x={recipe}"], "cannot name a folder"),
        ([str(recipe), str(tmp_path / "theirs")], "no such image"),
    ]:
        with pytest.raises((ConfigError, DataError), match=text):
            compare(given, task, out, console)
    assert not out.exists()


@pytest.mark.skipif(not (REAL / LIST).is_file(), reason="DreamBench is not at hand; set DREAMBENCH to its folder")
def test_the_command_evaluates_a_part_of_dreambench(tmp_path: Path) -> None:
    part = ["--subject", "dog", "--subject", "vase", "--prompt", "0", "--prompt", "24", "--images", "2", "--steps", "2"]
    options = ["--benchmark", str(REAL), "--protocol", "embedded", *part, "--out", str(tmp_path / "base")]
    done = CliRunner().invoke(app, ["evaluate", "embedded/pipeline", *options])
    assert done.exit_code == 0 and "DINO-I (subject) is skipped: the photos have no masks" in done.output, done.output
    found = json.loads((tmp_path / "base" / "summary.json").read_text(encoding="utf-8"))
    assert (found["subjects"], found["cases"], found["images"]) == (2, 4, 8)
    for name in ("DINO-I", "CLIP-I", "CLIP-T", "copy-paste", "diversity (DINO-I)"):
        assert -100 <= found["overall"][name]["low"] <= found["overall"][name]["high"] <= 200, name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["evaluate", "run", "--images", "2"], "--benchmark"),
        (["compare", "a", "b", "--benchmark", "world", "--protocol", "nothing"], "--protocol nothing"),
        (["compare", "a", "b", "--benchmark", "world", "--two-subjects"], "need DreamBench"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    lines = done.output.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error:") and text in lines[0], done.output
