"""The commands on the embedded models, with settings that shorten them. Bad input is in bad_inputs/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import cgrpo
from diffusers import FluxKontextPipeline
from PIL import Image

from customized_grpo.config.loading import load_config
from customized_grpo.utils.hub import resolve
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


def test_the_lora_loads_in_the_stock_pipeline_and_changes_the_image(trained: Path) -> None:
    pipeline = FluxKontextPipeline.from_pretrained(resolve("embedded/pipeline"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        return pipeline(
            image=Image.new("RGB", (64, 64), "red"),
            prompt="a toy in the snow",
            height=64,
            width=64,
            max_area=64 * 64,
            _auto_resize=False,
            max_sequence_length=24,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images[0]

    base = draw()
    pipeline.load_lora_weights(trained / "run" / "lora")
    assert not torch.equal(draw(), base)


def test_a_finished_run_can_be_extended(trained: Path) -> None:
    config = trained / "run" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("iterations: 2", "iterations: 3"), encoding="utf-8")
    done = cgrpo("train", "--resume", "run", folder=trained)
    assert done.returncode == 0, done.stderr
    assert [record["iteration"] for record in read_records(trained / "run" / "metrics.jsonl")] == [1, 2, 3]


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
