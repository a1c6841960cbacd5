"""The report shows what the run did, reports what is missing, and is one complete, safe and accessible file."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from reporting.conftest import PROMPTS
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.evaluation import read_evaluation
from customized_grpo.reporting.collect import collect
from customized_grpo.reporting.page import render
from customized_grpo.reporting.results import outcome
from customized_grpo.trainer.folder import open_run

pytestmark = pytest.mark.usefixtures("quick_figures")

VOID = {"meta", "img", "input", "br", "link"}


class Reader(HTMLParser):
    """All elements of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(page)
        self.close()
        assert not self._inside

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self._inside.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(trained: Path) -> str:
    return (trained / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


def test_a_finished_run_is_read_completely(trained: Path) -> None:
    run = collect(trained, open_run(trained))
    assert run.finished and run.notes == []
    assert [record["iteration"] for record in run.records] == [0, 1, 2, 3]
    assert [stored.iteration for stored in run.samples.values()] == [0, 1, 2, 3]
    assert [stored.iteration for stored in run.groups.values()] == [1, 2, 3]
    changed = {key: values for key, *values in run.changes}
    assert changed["rollout.pairs"] == ["4", "2"] and changed["train.iterations"] == ["60", "3"]
    assert "train.learning_rate" not in changed


def test_stored_scores_are_those_of_the_evaluation(trained: Path) -> None:
    run = collect(trained, open_run(trained))
    tuned = read_evaluation(trained / "evaluation/tuned", run.config.evaluation)
    assert tuned is not None
    *_, last = run.samples.values()
    for i, sample in enumerate(last.pairs):
        assert sample.scores == {name: values[i] for name, values in tuned.scores.items()}


def test_the_outcome_is_that_of_the_scores(trained: Path) -> None:
    found = outcome(collect(trained, open_run(trained)))
    assert found is not None and found.pairs == 2 and set(found.planes) == {"rewards", "independent"}
    base, tuned = (json.loads((trained / f"evaluation/{n}/scores.json").read_text("utf-8")) for n in ("base", "tuned"))
    for name, score in found.scores.items():
        assert score.base == pytest.approx(base["means"][name])
        assert score.change == pytest.approx(tuned["means"][name] - base["means"][name])
        first, second = (
            after - before for before, after in zip(base["scores"][name], tuned["scores"][name], strict=True)
        )
        assert score.low is not None and score.high is not None and score.low <= score.change <= score.high
        # The standard error of the mean of two values is half their distance.
        assert score.high - score.low == pytest.approx(2 * 1.96 * abs(first - second) / 2, rel=1e-6, abs=1e-9)


def test_an_unfinished_run_is_shown_as_one(copied: Path) -> None:
    lines = (copied / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    broken = re.sub(r'"gradient_norm":[^,]*', '"gradient_norm":null', lines[0])
    (copied / "metrics.jsonl").write_text(broken + lines[1][:40], encoding="utf-8")  # killed while it wrote
    shutil.rmtree(copied / "evaluation/tuned")
    (copied / "groups/iteration-000001/index.json").write_text("{", encoding="utf-8")
    run = collect(copied, open_run(copied))
    assert run.iterations == 1 and not run.finished and run.groups == {}
    assert [stored.iteration for stored in run.samples.values()] == [0, 1], "without what a resumed run repeats"
    assert run.notes == [
        "This run is not finished: 1 of 3 iterations are done.",
        "The tuned model has not been evaluated yet.",
    ]
    read = Reader(render(run))
    assert "Not evaluated yet" in read.text and run.notes[0] in read.text
    assert "The gradient norm is not a number at iteration 1." in read.text and "since iteration 1" in read.text


def test_an_evaluation_with_other_settings_is_reported(copied: Path) -> None:
    for name in ("base", "tuned"):
        path = copied / "evaluation" / name / "scores.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["settings"]["steps"] += 1
        path.write_text(json.dumps(stored), encoding="utf-8")
    run = collect(copied, open_run(copied))
    assert run.tuned is not None
    assert run.notes == ["The evaluation has other settings than those of the run."]


def test_the_command_writes_the_given_file(copied: Path) -> None:
    """Images of any size become small, missing ones leave the rest, and hostile names stay text."""
    noise = Image.effect_noise((2000, 1500), 200).convert("RGB")
    for path in (copied / "samples").glob("*/*.jpg"):
        noise.save(path, quality=95)
    (copied / "samples/iteration-000002/00000.jpg").unlink()
    (copied / "groups/iteration-000003/best-000.jpg").write_bytes(b"no image")
    text = (copied / "metrics.jsonl").read_text(encoding="utf-8")
    hostile = text.replace("evaluation/identity/mean", "evaluation/</svg><script>/mean")
    (copied / "metrics.jsonl").write_text(hostile, encoding="utf-8")
    out = copied.parent / "deep/page.html"
    run = copied.rename(copied.with_name("<script>run"))
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    read = Reader(out.read_text(encoding="utf-8"))
    assert len(read.all("script")) == 1 and "<script>run" in read.text and "</svg><script>" in read.text
    assert "iteration 2: no image" in read.text
    assert "worst group" in read.text
    labels = [attributes["aria-label"] for _, attributes in read.elements if attributes.get("role") == "region"]
    assert "worst group of iteration 3" in labels and "best group of iteration 3" not in labels
    for attributes in read.all("img"):
        with Image.open(BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as image:
            assert max(image.size) <= 192


def test_prompts_are_shown_as_text(page: str, read: Reader) -> None:
    assert all(prompt in read.text and prompt not in page for prompt in PROMPTS)
    assert len(read.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert any(attributes["alt"].endswith(PROMPTS[1]) for attributes in read.all("img"))


def test_nothing_is_loaded_from_elsewhere(page: str, read: Reader, trained: Path) -> None:
    assert (trained / "report.html").stat().st_size < 1_500_000
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in read.elements}
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value[:60])
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page)) and "@import" not in page
    (policy,) = (a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


def test_ids_are_unique_and_references_lead_to_one(page: str, read: Reader) -> None:
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a[name] for _, a in read.elements for name in ("href", "xlink:href", "for") if name in a]
    used = {target.removeprefix("#") for target in targets} | set(re.findall(r"url\(#([^)]*)\)", page))
    assert used and used <= set(ids)


def test_images_headings_tables_and_controls_are_accessible(read: Reader) -> None:
    assert len(read.all("img")) > 30 and all(attributes["alt"].strip() for attributes in read.all("img"))
    figures = read.all("svg")
    assert len(figures) >= 12 and all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in figures)
    assert any("gradient_norm from" in a["aria-label"] for a in figures)
    assert any("base at" in a["aria-label"] and "tuned at" in a["aria-label"] for a in figures)
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert read.all("html")[0]["lang"] == "en" and len(read.all("main")) == 1
    assert all(attributes["scope"] in ("col", "row", "colgroup") for attributes in read.all("th"))
    (slider,) = (a for a in read.all("input") if a["type"] == "range")
    assert {a["for"] for a in read.all("label")} == {slider["id"]}
    assert slider["aria-valuetext"] == "tuned" and (slider["min"], slider["max"]) == ("0", "3")
    for region in (a for _, a in read.elements if a.get("role") == "region"):
        assert region["aria-label"] and region["tabindex"] == "0", "what scrolls is reached by keyboard"


def test_without_monitors_the_headline_is_about_the_rewards(trained: Path) -> None:
    config = open_run(trained)
    alone = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"monitors": []})})
    found = outcome(collect(trained, alone))
    assert found is not None and "by the rewards it was trained on" in found.headline
