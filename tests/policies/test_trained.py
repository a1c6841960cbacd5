"""Every model through the same loop: a LoRA that it trained does in the stock pipeline what it does here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import proofs
import pytest
import test_flux2
import test_flux_kontext
import test_qwen_image_edit
import tiny
import tiny_flux2
import tiny_qwen
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from embedded import embedded
from PIL import Image
from proofs import apart, euler, noise, stock
from safetensors.torch import save_file
from tiny_uno import stock_picture, uno_lora
from torch import Tensor

from customized_grpo.config import (
    Config,
    DataConfig,
    LoraConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.records import read_records

REWARDS = """
def red(images, pairs):
    return images[:, 0].mean((1, 2))


def upper(images, pairs):
    return images[:, :, : images.shape[2] // 2].mean((1, 2, 3))
"""

Draw = Callable[[Any, Any, list[Image.Image]], Tensor]


@dataclass(frozen=True)
class Model:
    """A tiny pipeline, the settings of its policy, the references to draw with, and how the stock pipeline draws."""

    save: Callable[[Path], Path]
    settings: dict[str, Any]
    references: list[Image.Image]
    draw: Draw


TWO = [proofs.random_picture(64, 72, 1), proofs.random_picture(80, 64, 2)]
LONG = {"kind": "flux2", "reference_sizes": None, "max_sequence_length": test_flux2.TOKENS}
MODELS = {
    "flux-kontext": Model(
        tiny.save_flux_kontext,
        {"reference_sizes": [(16, 24)]},
        [proofs.random_picture(16, 24, 0)],
        lambda pipeline, policy, images: test_flux_kontext.pipeline_picture(pipeline, noise(policy), images[0]),
    ),
    "uno": Model(  # FluxPipeline takes no references
        lambda folder: tiny.save_flux(folder, layers=2),
        {"kind": "uno", "reference_sizes": [(16, 24)]},
        [],
        lambda pipeline, policy, images: stock_picture(pipeline, policy),
    ),
    "flux2-klein": Model(
        lambda folder: tiny_flux2.save(tiny_flux2.klein(), folder),
        LONG,
        TWO,
        lambda pipeline, policy, images: test_flux2.pipeline_picture(pipeline, noise(policy), images),
    ),
    "flux2-dev": Model(
        lambda folder: tiny_flux2.save(tiny_flux2.dev(), folder),
        LONG,
        TWO,
        lambda pipeline, policy, images: test_flux2.pipeline_picture(pipeline, noise(policy), images),
    ),
    "qwen-image-edit": Model(
        tiny_qwen.save_qwen_image_edit,
        {"kind": "qwen-image-edit", "reference_sizes": None},
        TWO,
        lambda pipeline, policy, images: test_qwen_image_edit.pipeline_picture(pipeline, noise(policy), images),
    ),
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", 32 * 32)
    monkeypatch.setattr(plus, "CONDITION_IMAGE_SIZE", 56 * 56)
    with tiny_qwen.without_video() if request.param == "qwen-image-edit" else nullcontext():
        yield request.param


def test_a_trained_lora_changes_the_stock_pipelines_picture_alike(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    folder = model.save(tmp_path / "pipeline")
    settings = {"path": str(folder), "device": "cpu", "height": 32, "width": 24, "lora": LoraConfig(rank=4)}
    if name == "uno":
        save_file(uno_lora(), tmp_path / "dit_lora.safetensors")
        start = {"adapter": str(tmp_path / "dit_lora.safetensors"), "adapter_as": "start"}
        settings |= {**start, "lora": LoraConfig(rank=6)}
    (tmp_path / "judges.py").write_text(REWARDS)
    config = embedded(
        Config,
        policy=embedded(PolicyConfig, **{**settings, **model.settings}),
        data=embedded(DataConfig, size=2),
        rewards=[
            RewardConfig(kind=f"{tmp_path / 'judges.py'}:red", role="identity", name="red"),
            RewardConfig(kind=f"{tmp_path / 'judges.py'}:upper", role="prompt", name="upper"),
        ],
        rollout=embedded(RolloutConfig, steps=3, group_size=3, pairs=1),
        train=embedded(
            TrainConfig, iterations=3, updates=1, learning_rate=2e-2, kl_weight=0.01, trackers=[], max_drift=None
        ),
    )
    policy = build_policy(config.policy)
    CustomizedGRPOTrainer(
        policy, reward_terms(config.rewards, policy.device), open_dataset(config.data), None, config, tmp_path / "run"
    ).train()
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert len(records) == 3
    # On policy, in the first update of an iteration, no ratio is clipped: all are 1.
    assert all(record["gradient_norm"] > 0 and record["clip_fraction"] == 0 for record in records)
    policy.save(tmp_path / "lora")
    pipeline = stock(folder)
    untuned = model.draw(pipeline, policy, model.references)
    pipeline.load_lora_weights(tmp_path / "lora")
    tuned = model.draw(pipeline, policy, model.references)
    drawn = euler(policy, noise(policy), policy.encode(proofs.PROMPT, model.references))
    assert apart(drawn, tuned) < 1e-4
    assert apart(drawn, untuned) > 1e-3
