"""Images, scores and errors of the demo, without its page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from servers import bomb

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.evaluation.generate import generate
from customized_grpo.protocols import Pair
from customized_grpo.rewards import score
from customized_grpo.serve.demo import serve_demo, studio
from customized_grpo.serve.demo.studio import AskError, Studio, read_photos
from customized_grpo.trainer.parts import build_scorers, policy_with_adapter
from customized_grpo.utils.pixels import to_tensor

PROMPT, PHOTO = "a dog in the snow", Image.radial_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def opened(random_run: Path) -> Studio:
    return Studio(load_config(random_run / "config.yaml"), random_run)


def test_both_models_generate_and_score_as_the_commands_do(opened: Studio, random_run: Path) -> None:
    columns = opened.generate_columns(PROMPT, [PHOTO], seed=3, steps=2, images=2)
    assert [column.name for column in columns] == ["base", "tuned"]
    config = load_config(random_run / "config.yaml")
    scorers, pair = build_scorers(config, opened.policy.device), Pair("other key", PROMPT, (PHOTO,), (None,))
    for column, run in zip(columns, (None, random_run), strict=True):
        expected = generate(policy_with_adapter(config, run), PROMPT, [PHOTO], steps=2, seed=3, images=2)
        assert all(np.array_equal(*map(np.asarray, pair)) for pair in zip(column.images, expected, strict=True))
        pixels = torch.stack([to_tensor(image) for image in column.images])
        scores = score(scorers, pixels, [pair, pair])
        assert column.scores.keys() == scores.keys()
        assert all(column.scores[name] == pytest.approx(values.tolist(), abs=1e-4) for name, values in scores.items())
    assert columns[0].images[0].tobytes() != columns[1].images[0].tobytes()
    two = opened.generate_columns(PROMPT, [PHOTO, Image.new("RGB", (50, 60), "red")], seed=3, steps=2, images=1)
    assert two[0].images[0].tobytes() != columns[0].images[0].tobytes(), "the second photo reaches the model"


@pytest.mark.parametrize(
    ("prompt", "photos", "message"),
    [(" \n", [PHOTO], "prompt is empty"), ("a" * 1001, [PHOTO], "1001 characters"), (PROMPT, [], "There is no photo")],
)
def test_what_is_missing_or_too_long_is_one_line(opened: Studio, prompt: str, photos: list[Any], message: str) -> None:
    with pytest.raises(AskError, match=message):
        opened.generate_columns(prompt, photos, seed=0, steps=2, images=1)


def test_rejected_files_are_named_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "vector.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    (tmp_path / "bomb.png").write_bytes(bomb(50_000))
    good = tmp_path / "good.png"
    for name, message in (
        ("text.jpg", "not an image of a known format"),
        ("vector.svg", "not an image"),
        ("bomb.png", "67 million"),
        ("gone.png", "was removed"),
    ):
        PHOTO.save(good)
        with pytest.raises(AskError, match=message) as caught:
            read_photos([good, tmp_path / name])
        assert str(caught.value).startswith(name) and str(tmp_path) not in str(caught.value)
        assert not good.exists() and not (tmp_path / name).exists(), "nothing of a rejected upload stays"
    with pytest.raises(AskError, match="5 photos are too many"):
        read_photos([good] * 5)
    PHOTO.save(good)
    monkeypatch.setattr(studio, "MOST_BYTES", 10)
    with pytest.raises(AskError, match=r"good\.png: more than"):
        read_photos([good])


def test_a_photo_is_replaced_by_its_pixels(tmp_path: Path) -> None:
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x010E] = "a secret place"
    PHOTO.save(path, exif=exif)
    (first,) = read_photos([path])
    assert path.read_bytes().startswith(b"\x89PNG") and b"a secret place" not in path.read_bytes()
    (again,) = read_photos([path])
    assert again.tobytes() == first.tobytes()


def test_without_gradio_it_is_one_line_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    with pytest.raises(ConfigError, match=r"needs Gradio, which is not installed; pip install -e '\.\[demo\]'"):
        serve_demo([], ["policy.path=./nowhere"], None, "127.0.0.1", 7860, None)  # type: ignore[arg-type]
