"""Scores of the built-in reward models on a GPU are those on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import devices
import pytest
import tiny_rewards
import torch
from PIL import Image
from proofs import random_image

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import build_reward


def _hps_v3(folder: Path) -> dict[str, Any]:
    base = folder / "base"
    base.mkdir()
    tiny_rewards.qwen_base(base)
    tiny_rewards.hps_v3(folder, base)
    return {"base": str(base), "dtype": "float32"}


def _segmented(folder: Path) -> dict[str, Any]:
    tiny_rewards.dinov3(folder)
    (folder / "segmenter").mkdir()
    tiny_rewards.segformer(folder / "segmenter", steps=5)
    return {"segmenter": str(folder / "segmenter"), "segment_images": True}


def _detected(folder: Path) -> dict[str, Any]:
    tiny_rewards.dinov3(folder)
    (folder / "segmenter").mkdir()
    (folder / "detector").mkdir()
    tiny_rewards.sam2(folder / "segmenter", video=True)
    tiny_rewards.grounding_dino(folder / "detector")
    return {"segmenter": str(folder / "segmenter"), "detector": str(folder / "detector"), "segment_images": True}


def _qwen3_vl(folder: Path) -> dict[str, Any]:
    tiny_rewards.qwen3_vl(folder)
    return {"dtype": "float32"}


#: By name: the kind, its role, and what writes a tiny model of it to a folder and may return options.
REWARDS: dict[str, tuple[str, str, Callable[[Path], Any] | None]] = {
    "DINOv3": ("dino", "identity", tiny_rewards.dinov3),
    "DINOv3, segmented": ("dino", "identity", _segmented),
    "DINOv3, detected": ("dino", "identity", _detected),
    "DINOv2 patches": ("dino-patches", "identity", tiny_rewards.dinov2),
    "CLIP-I": ("clip-image", "identity", tiny_rewards.clip),
    "SigLIP 2 images": ("siglip-image", "identity", tiny_rewards.siglip),
    "CLIP-T": ("clip", "prompt", tiny_rewards.clip),
    "SigLIP 2": ("siglip", "prompt", tiny_rewards.siglip),
    "PickScore": ("pickscore", "prompt", tiny_rewards.clip),
    "HPS v2": ("hps-v2", "prompt", tiny_rewards.clip),
    "HPS v3": ("hps-v3", "prompt", _hps_v3),
    "Qwen3-VL": ("vlm-local", "identity", _qwen3_vl),
    "copy-paste": ("copy-paste", "guard", None),
}
ON_CPU = ("CLIP-T", "copy-paste")
CASES = [pytest.param(devices.GPU, name, marks=pytest.mark.gpu, id=f"{name}-gpu") for name in REWARDS]
CASES += [pytest.param("cpu", name, id=f"{name}-cpu") for name in ON_CPU]


def pair(key: str, prompt: str, seeds: tuple[int, ...]) -> Pair:
    """A pair with masks of the middle of each reference."""
    references = tuple(random_image(40, 48, seed) for seed in seeds)
    mask = Image.new("L", (48, 40))
    mask.paste(255, (12, 10, 36, 30))
    return Pair(key, prompt, references, (mask,) * len(seeds), subject="ball")


@pytest.mark.parametrize(("device", "name"), CASES)
def test_scores_of_a_device_are_those_of_the_cpu(device: str, name: str, tmp_path: Path) -> None:
    """Of images there, before and after features of references and prompts are kept; within 0.01 of 100 points."""
    kind, role, make = REWARDS[name]
    torch.manual_seed(0)
    made = None if make is None else make(tmp_path)
    settings: dict[str, Any] = {"kind": kind, "role": role, "path": None if make is None else str(tmp_path)}
    config = RewardConfig(**settings, options=made if isinstance(made, dict) else {})
    pairs = [pair("a", "a cat", (0,)), pair("b", "a dog in the snow", (1, 2)), pair("a", "a cat", (0,))]
    images = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(5))
    expected = build_reward(config, "cpu")(images, pairs)
    reward = build_reward(config, device)
    for given in (images.to(device), images):
        found = reward(given, pairs)
        assert found.dtype == torch.float32 and found.isfinite().all()
        torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=0)
