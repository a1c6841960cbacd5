"""The commands on the embedded models, with settings that shorten them. Bad input is in bad_inputs/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import cgrpo
from PIL import Image

from customized_grpo.config.loading import load_config
from customized_grpo.utils.records import read_records

SHORT = [
    "train.iterations=2", "train.updates=1", "train.checkpoint_every=1", "train.sample_every=2", "rollout.steps=3",
    "rollout.group_size=3", "rollout.pairs=2", "forward.levels=1", "evaluation.data.size=3", "evaluation.steps=2",
]  # fmt: skip


def settings(*more: str) -> list[str]:
    return [part for setting in (*SHORT, *more) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    done = cgrpo("train", "--out", "run", *settings(), folder=folder)
    assert done.returncode == 0, done.stderr
    assert "identity" in done.stdout
    return folder


def test_a_run_writes_all_its_files(trained: Path) -> None:
    run = trained / "run"
    assert load_config(run / "config.yaml").train.iterations == 2
    assert [record["iteration"] for record in read_records(run / "metrics.jsonl")] == [1, 2]
    assert any((run / "tensorboard").rglob("*tfevents*"))
    for name in ("before-after.png", "curves.png", "plane.png", "weights.png", "samples/iteration-000002.png"):
        with Image.open(run / name) as image:
            assert min(image.size) > 200, name
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000001", "000002"]


def test_generate_takes_a_photo_of_any_kind(trained: Path) -> None:
    photo = Image.linear_gradient("L").resize((333, 200)).convert("CMYK")
    photo.save(trained / "photo.jpg")
    prompt = ("--prompt", "a dog wearing a red hat in the snow")
    shared = ("generate", "--reference", "photo.jpg", *prompt, "--steps", "2")
    runs = (("base.png", ("--images", "2")), ("tuned.png", ("--run", "run")), ("again.png", ("--run", "run")))
    for out, more in runs:
        done = cgrpo(*shared, "--out", out, *more, folder=trained)
        assert done.returncode == 0, done.stderr
    images = [(trained / name).read_bytes() for name in ("base-1.png", "tuned.png", "again.png", "base-2.png")]
    assert images[1] == images[2], "same seed, same image"
    assert len(set(images)) == 3


def test_evaluate_scores_base_and_tuned(trained: Path) -> None:
    done = cgrpo("evaluate", "run", "--set", "evaluation.images=2", folder=trained)
    assert done.returncode == 0, done.stderr
    assert len(list((trained / "run/evaluation/tuned").glob("*.png"))) == 6
    assert "base" in done.stdout
    # Images of other settings are not reused when the run resumes.
    assert cgrpo("train", "--resume", "run", folder=trained).returncode == 0
    for name in ("base", "tuned"):
        kept = json.loads((trained / "run/evaluation" / name / "scores.json").read_text(encoding="utf-8"))
        assert len(kept["images"]) == 3


def test_info_shows_versions_device_and_settings(trained: Path) -> None:
    done = cgrpo("info", folder=trained)
    assert done.returncode == 0, done.stderr
    for word in ("diffusers", "device: ", "policy.path: embedded/pipeline  # embedded:", "train.learning_rate: "):
        assert word in done.stdout
