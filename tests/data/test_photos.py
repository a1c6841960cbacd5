"""`cgrpo pairs`: training pairs from a folder of photos."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.data import datasets
from customized_grpo.data.errors import DataError
from customized_grpo.data.photos import PROMPT_LISTS, write_pairs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "masks").mkdir(parents=True)
    for name, colour in (("a.jpg", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    Image.new("L", (40, 30), 255).save(folder / "masks" / "a.png")
    return folder


@pytest.mark.parametrize("prompts", PROMPT_LISTS)
def test_each_prompt_with_each_photo_and_a_fifth_held_out(photos: Path, tmp_path: Path, prompts: str) -> None:
    out, held_out = tmp_path / "pairs.jsonl", tmp_path / "held-out.jsonl"
    options = ["--subject", "owl", "--prompts", prompts, "--out", str(out), "--held-out", str(held_out)]
    result = CliRunner().invoke(app, ["pairs", str(photos), *options])
    assert result.exit_code == 0, result.output
    trained, evaluated = datasets.from_jsonl(out), datasets.from_jsonl(held_out)
    assert len(trained) == 4 * len(evaluated) == 64
    texts = {pair.prompt for pair in trained}
    assert not texts & {pair.prompt for pair in evaluated}
    assert all("owl" in text and "{" not in text and "a owl" not in text for text in texts)
    first, second = trained[0], trained[1]
    assert first.masks[0] is not None and second.masks[0] is None, "masks are found beside the photos"
    assert first.subject == "owl" and first.references[0] != second.references[0]


def test_own_prompts(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("A {subject} on Mars\n\nthe {subject} asleep\n")
    write_pairs(photos, "otter", str(tmp_path / "mine.txt"), photos / "pairs.jsonl")
    pairs = datasets.from_jsonl(photos / "pairs.jsonl")
    assert [pair.prompt for pair in pairs] == 2 * ["An otter on Mars", "the otter asleep"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "none.txt"}, "--prompts none.txt: cannot be read .* give object or live"),
        ({"prompts": "text"}, "'a dog on Mars' does not contain {subject}; add it"),
        ({"out": "elsewhere/pairs.jsonl"}, "must be in .* or a folder above it"),
        ({"photos": "elsewhere"}, "no photo in it"),
        ({"photos": "broken"}, "broken/a.png"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("a dog on Mars\n")
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"no image")
    given = {"photos": "photos", "subject": "dog", "prompts": "live", "out": "pairs.jsonl", **change}
    with pytest.raises((DataError, ValueError), match=message):
        write_pairs(Path(given["photos"]), given["subject"], given["prompts"], Path(given["out"]))
    assert not Path("pairs.jsonl").exists() and not Path("elsewhere").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "old.jsonl"], "--out old.jsonl: exists; give another name, or --overwrite"),
        (["--prompts", "old.jsonl", "--out", "old.jsonl", "--overwrite"], "is an input of this command"),
        (["--out", "new.jsonl", "--held-out", "./new.jsonl"], "--held-out new.jsonl: is the file of --out, too"),
    ],
)
def test_nothing_is_written_over_without_a_wish(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.jsonl").write_text("a {subject}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["pairs", "photos", "--subject", "owl", *options])
    assert done.exit_code == 2 and message in done.stderr, done.output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
