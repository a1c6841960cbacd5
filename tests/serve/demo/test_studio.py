"""What the page draws and refuses, without a page."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.evaluation.generate import generate
from customized_grpo.protocols import Pair
from customized_grpo.rewards import score
from customized_grpo.serve.demo import serve_demo, uploads
from customized_grpo.serve.demo.results import error_line, results
from customized_grpo.serve.demo.studio import MOST_SEED, Ask, AskError, Column, Studio
from customized_grpo.serve.demo.uploads import read_masks, read_photos, rewrite_photos
from customized_grpo.trainer.parts import build_judges, policy_with_adapter
from customized_grpo.utils.pixels import to_tensor


@pytest.fixture(scope="module")
def studio(moved_run: Path) -> Studio:
    return Studio(load_config(moved_run / "config.yaml"), moved_run)


@pytest.fixture(scope="module")
def ask() -> Ask:
    photo = Image.radial_gradient("L").convert("RGB")
    return Ask("a dog in the snow", [photo], seed=3, steps=2, images=2)


def test_both_models_draw_from_the_same_noise_as_generate_does(studio: Studio, ask: Ask, moved_run: Path) -> None:
    columns = studio.draw(ask)
    assert [column.name for column in columns] == ["base", "tuned"]
    config = load_config(moved_run / "config.yaml")
    for column, run in zip(columns, (None, moved_run), strict=True):
        policy = policy_with_adapter(config, run)
        expected = generate(policy, ask.prompt, ask.references, steps=2, seed=3, images=2)
        for drawn, other in zip(column.pictures, expected, strict=True):
            assert np.array_equal(np.asarray(drawn), np.asarray(other))
    assert columns[0].pictures[0].tobytes() != columns[1].pictures[0].tobytes()
    assert columns[0].pictures[0].tobytes() != columns[0].pictures[1].tobytes()


def test_the_scores_are_those_of_rewards_and_monitors(studio: Studio, ask: Ask) -> None:
    column = studio.draw(ask)[1]
    config = load_config()
    assert list(column.scores) == ["identity", "prompt", "identity (independent)", "prompt (independent)", "copy-paste"]
    assert studio.guards == {"copy-paste"}
    pair = Pair("other key", ask.prompt, tuple(ask.references), (None,))
    pixels = torch.stack([to_tensor(picture) for picture in column.pictures])
    expected = score(build_judges(config, studio.policy.device).all, pixels, [pair, pair])
    for name, values in expected.items():
        assert column.scores[name] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_mask_reaches_the_judges_and_several_photos_the_model(studio: Studio, ask: Ask) -> None:
    plain = studio.draw(ask)[0]
    mask = Image.new("L", ask.references[0].size)
    mask.paste(255, (60, 60, 200, 200))
    masked = studio.draw(dataclasses.replace(ask, masks=[mask]))[0]
    assert masked.pictures[0].tobytes() == plain.pictures[0].tobytes()
    assert masked.scores["copy-paste"] != plain.scores["copy-paste"]
    two = dataclasses.replace(ask, references=[*ask.references, Image.new("RGB", (50, 60), "red")])
    assert studio.draw(two)[0].pictures[0].tobytes() != plain.pictures[0].tobytes()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prompt": " \n"}, "The prompt is empty"),
        ({"prompt": "a" * 1001}, "1001 characters"),
        ({"references": []}, "There is no photo"),
        ({"references": [Image.new("RGB", (9, 9))] * 5}, "5 photos are too many"),
        ({"masks": [Image.new("L", (9, 9))] * 2}, "more masks than photos"),
        ({"steps": 0}, "steps is 0: give 1 to 100"),
        ({"steps": 101}, "steps is 101"),
        ({"images": 5}, "images is 5: give 1 to 4"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": MOST_SEED + 1}, "seed is"),
    ],
)
def test_what_is_out_of_bounds_is_one_line(studio: Studio, ask: Ask, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(AskError, match=told) as caught:
        studio.draw(dataclasses.replace(ask, **changed))
    assert "\n" not in str(caught.value)


def bomb(path: Path, side: int = 50_000) -> Path:
    """A PNG of few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_bad_files_are_told_of_by_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "photo.jpg"
    text.write_text("no picture")
    vector = tmp_path / "photo.svg"
    vector.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    for path, told in (
        (text, "not an image of a known format"),
        (vector, "not an image"),
        (bomb(tmp_path / "bomb.png"), "above the bound of 67 million"),
        (tmp_path / "gone.png", "is no longer there"),
    ):
        with pytest.raises(AskError, match=told) as caught:
            read_photos([path])
        assert str(caught.value).startswith(path.name) and str(tmp_path) not in str(caught.value)
    good = tmp_path / "good.png"
    Image.new("RGB", (40, 30), "red").save(good)
    with pytest.raises(AskError, match="5 files are too many"):
        read_photos([good] * 5)
    with pytest.raises(AskError, match="marks no pixel"):
        read_masks([_black(tmp_path / "black.png")], read_photos([good]))
    with pytest.raises(AskError, match="more masks than photos"):
        read_masks([good, good], read_photos([good]))
    monkeypatch.setattr(uploads, "MOST_BYTES", 10)
    with pytest.raises(AskError, match=r"good\.png: more than"):
        read_photos([good])


def _black(path: Path) -> Path:
    Image.new("L", (8, 8)).save(path)
    return path


def test_masks_take_the_size_of_their_photos(tmp_path: Path) -> None:
    mask = Image.new("L", (10, 10))
    mask.paste(255, (0, 0, 5, 10))
    mask.save(tmp_path / "mask.png")
    (read,) = read_masks([tmp_path / "mask.png"], [Image.new("RGB", (40, 20)), Image.new("RGB", (9, 9))])
    assert (read.mode, read.size) == ("L", (40, 20))
    assert read.getpixel((2, 2)) == 255 and read.getpixel((38, 2)) == 0


def test_the_results_escape_what_they_show_and_know_missing_scores() -> None:
    picture = Image.new("RGB", (4, 4))
    columns = [
        Column("<base>", [picture], {"<b>name</b>": [1.0], "gone": [float("nan")]}),
        Column("tuned", [picture], {"<b>name</b>": [3.5], "gone": [2.0]}),
    ]
    shown = results(columns, {"gone"})
    assert "<b>name" not in shown and "&lt;b&gt;name" in shown and "&lt;base&gt;" in shown
    row = re.search(r'<tr><th scope="row">gone</th>(.*?)</tr>', shown)
    assert row is not None and row[1] == '<td>-</td><td>2.0</td><td class="">-</td>'
    assert '<td class="up">+2.5</td>' in shown
    assert error_line("a <script>\nb") == '<p class="problem" role="alert">a &lt;script&gt; b</p>'


def test_an_upload_is_written_over_and_can_still_be_drawn_by_its_name(tmp_path: Path) -> None:
    """Who presses the button at once asks for the file as it was sent."""
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x010E] = "a secret place"
    Image.radial_gradient("L").convert("RGB").save(path, exif=exif)
    (seen,) = rewrite_photos([path])
    assert path.read_bytes().startswith(b"\x89PNG") and b"a secret place" not in path.read_bytes()
    (again,) = read_photos([path])
    assert again.tobytes() == seen.tobytes()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(AskError, match=r"broken\.png"):
        rewrite_photos([path, tmp_path / "broken.png"])
    assert not list(tmp_path.iterdir()), "nothing of what is refused stays"


def test_without_gradio_it_is_one_line_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    with pytest.raises(
        ConfigError, match=r"needs Gradio, which is not installed; pip install 'customized-grpo\[demo\]'"
    ):
        serve_demo(None, ["policy.path=./nowhere"], None, "127.0.0.1", 7860, None)  # type: ignore[arg-type]
