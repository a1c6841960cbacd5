"""The page: complete in itself, safe, accessible by what can be read off its text."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from PIL import Image

from customized_grpo.config import Config
from customized_grpo.figures import canvas
from customized_grpo.reporting import collect, write_report
from customized_grpo.reporting.drawings import drawn
from customized_grpo.reporting.page import clock, number, render, signed
from customized_grpo.reporting.palette import DARK, FIXED, LIGHT
from customized_grpo.reporting.snapshots import folder_of
from customized_grpo.trainer.folder import open_run

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

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self._inside, f"</{tag}> closes nothing"
        assert self._inside.pop() == tag, f"</{tag}> closes another"

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


def test_prompts_are_text_and_nothing_else(page: str, read: Reader, prompts: tuple[str, str]) -> None:
    for prompt in prompts:
        assert prompt in read.text, "shown as it was written"
        assert prompt not in page
    assert len(read.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert any(attributes["alt"].endswith(prompts[1]) for attributes in read.all("img"))


def test_names_and_settings_are_text_too(trained: Path, copied: Callable[[], Path]) -> None:
    run = copied()
    run = run.rename(run.with_name("<script>run"))
    config = open_run(run)
    hostile = config.rewards[0].model_copy(update={"name": "</svg><script>reward"})
    config = config.model_copy(update={"rewards": [hostile, *config.rewards[1:]]})
    records = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (run / "metrics.jsonl").write_text(
        records.replace('"evaluation/identity/mean"', '"evaluation/</svg><script>reward/mean"'), encoding="utf-8"
    )
    read = Reader(render(collect(run, config)))
    assert len(read.all("script")) == 1
    assert "<script>run" in read.text and "</svg><script>reward" in read.text


def test_nothing_is_loaded_from_elsewhere(page: str, read: Reader) -> None:
    assert "http:" not in page and "https:" not in page
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in read.elements}
    for tag, attributes in read.elements:
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value[:60])
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    (policy,) = (a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


def test_every_id_is_there_once_and_every_reference_leads_to_one(page: str, read: Reader) -> None:
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a[name] for _, a in read.elements for name in ("href", "for", "list") if name in a]
    used = {target.removeprefix("#") for target in targets} | set(re.findall(r"url\(#([^)]*)\)", page))
    assert used <= set(ids)


def test_the_file_is_small_whatever_its_pictures_weigh(trained: Path, copied: Callable[[], Path]) -> None:
    assert (trained / "report.html").stat().st_size < 1_500_000
    run = copied()
    noise = Image.effect_noise((2000, 1500), 200).convert("RGB")
    for kind in ("samples", "groups"):
        for path in (run / kind).glob("*/*.jpg"):
            noise.save(path, quality=95)
    written = write_report(open_run(run), run, run / "large.html")
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', written.read_text(encoding="utf-8"))
    assert len(sources) > 30
    for source in set(sources):
        with Image.open(BytesIO(base64.b64decode(source))) as picture:
            assert max(picture.size) <= 192
    assert max(map(len, sources)) < 40_000


def test_pictures_have_text_alternatives_with_their_numbers(read: Reader) -> None:
    assert len(read.all("img")) > 30
    assert all(attributes["alt"].strip() for attributes in read.all("img"))
    drawings = read.all("svg")
    assert len(drawings) >= 12
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in drawings)
    assert any("gradient_norm from" in a["aria-label"] for a in drawings)
    assert any("base at" in a["aria-label"] and "tuned at" in a["aria-label"] for a in drawings)


def test_headings_tables_and_controls_can_be_found_by_ear(read: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert read.all("html")[0]["lang"] == "en"
    assert len(read.all("main")) == 1 and read.all("nav")[0]["aria-label"]
    tables = [i for i, (tag, _) in enumerate(read.elements) if tag == "table"]
    for i, end in zip(tables, [*tables[1:], len(read.elements)], strict=True):
        headers = [attributes for tag, attributes in read.elements[i:end] if tag == "th"]
        assert headers and all(a["scope"] in ("col", "row", "colgroup") for a in headers)
    (slider,) = (a for a in read.all("input") if a["type"] == "range")
    assert {a["for"] for a in read.all("label")} == {slider["id"]}
    assert slider["aria-valuetext"] == "tuned" and (slider["min"], slider["max"]) == ("0", "3")
    for region in (a for _, a in read.elements if a.get("role") == "region"):
        assert region["aria-label"] and region["tabindex"] == "0", "what scrolls is reached by the keyboard"
    assert "prefers-reduced-motion" in (Path(canvas.__file__).parents[1] / "reporting/report.css").read_text("utf-8")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_colours() -> None:
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.478, abs=1e-3)


def test_words_and_lines_stand_out_from_what_they_stand_on(page: str) -> None:
    blocks = re.findall(r"\{ (--page: [^}]*?) color-scheme: (light|dark);", page)
    themes = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block, _ in blocks]
    assert [name for _, name in blocks] == ["light", "dark", "dark"]
    assert themes == [LIGHT, DARK, DARK]
    hues = ("ink", "muted", "blue", "vermillion", "green", "orange", "pink", "sky", "grey")
    pairs = [(hue, ground) for hue in hues for ground in ("page", "card")]
    pairs += [("ink", "alarm"), ("ink", "calm"), ("muted", "sunken")]
    for theme in themes[:2]:
        for hue, ground in pairs:
            assert contrast(theme[hue], theme[ground]) >= 4.5, (hue, ground)
    for area in (canvas.CONFLICTED, canvas.BOTH_POSITIVE, canvas.BOTH_NEGATIVE, canvas.SILENT):
        assert contrast(canvas.ON_AREA, area) >= 4.5


def test_drawings_follow_the_theme(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    literal = {colour.upper() for drawing in drawings for colour in re.findall(r"#[0-9a-fA-F]{6}\b", drawing)}
    assert literal <= {colour.upper() for colour in FIXED}
    named = {name for drawing in drawings for name in re.findall(r"var\(--(\w+)\)", drawing)}
    assert {"ink", "card", "grid", "blue", "vermillion"} <= named <= LIGHT.keys()
    for drawing in drawings:
        words = re.findall(r'<text[^>]*style="([^"]*)"', drawing)
        assert words and all("fill: var(--" in style or f"fill: {canvas.ON_AREA.lower()}" in style for style in words)


def test_two_drawings_share_no_id() -> None:
    def draw(path: Path) -> None:
        with canvas.drawing(path, 3, 2) as figure:
            axes: Axes = figure.add_subplot()
            axes.plot([1, 2, 3], marker="o")
            axes.set_title("a <b> & c")

    first, second = drawn(draw, "one", "first"), drawn(draw, "two", 'a "second"')
    ids = [set(re.findall(r' id="([^"]*)"', drawing)) for drawing in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for drawing in (first, second):
        root = ElementTree.fromstring(drawing)
        assert "a <b> & c" in [text.text for text in root.iter("text")], "words stay words"
    assert ElementTree.fromstring(second).get("aria-label") == 'a "second"'


def test_a_warning_is_shown_with_its_iteration(copied: Callable[[], Path]) -> None:
    run = copied()
    records = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (run / "metrics.jsonl").write_text(re.sub(r'"gradient_norm": [^,]*', '"gradient_norm": null', records), "utf-8")
    read = Reader(render(collect(run, open_run(run))))
    assert "The gradient norm is not a number at iteration 1." in read.text
    assert "since iteration 1" in read.text and "None found" not in read.text


def test_numbers_as_they_are_read() -> None:
    assert [number(v) for v in (None, float("nan"), 0, 12.345, -0.5, 1e-5, 123456.0)] == [
        "-", "-", "0.00", "12.35", "\u22120.50", "1e\u221205", "1.23e+05",
    ]  # fmt: skip
    assert [signed(v) for v in (1.0, -2.345, -0.001, None)] == ["+1.00", "\u22122.35", "+0.00", "-"]
    assert [clock(v) for v in (5, 65, 3700)] == ["5 s", "1 min 5 s", "1 h 1 min"]


def test_a_run_of_other_rewards_needs_no_judges(copied: Callable[[], Path]) -> None:
    run = copied()
    config = open_run(run)
    alone = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"monitors": []})})
    read = Reader(render(collect(run, alone)))
    assert "by the rewards it trained on" in read.text
    assert "By independent judges" not in read.text
    assert isinstance(alone, Config) and folder_of(run, "samples", 3).is_dir()
