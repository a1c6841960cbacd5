"""Framing on tensors is that of the stock image processors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from customized_grpo.rewards.frame import Frame, to_tensor


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (36, 36), (300, 33), (20, 24)])
def test_agrees_with_the_stock_processor(size: tuple[int, int], dino_folder: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(64, 192, (*size[::-1], 3), dtype=np.uint8))
    expected = BitImageProcessorPil.from_pretrained(dino_folder)(picture, return_tensors="pt")
    pixels = Frame.of(dino_folder)(to_tensor(picture)[None])
    assert pixels.shape == expected.pixel_values.shape
    # PIL rounds between its two passes; a step of 8 bits is 0.0175 here. It clips there as well, so that
    # pictures near black and white differ by more: none of those.
    assert (pixels - expected.pixel_values).abs().max() < 0.06


def test_a_fixed_size_and_no_crop(tmp_path: Path) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 20, "width": 30},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    frame = Frame.of(tmp_path)
    assert frame(torch.ones(2, 3, 50, 50)).shape == (2, 3, 20, 30)
    assert torch.equal(frame(torch.ones(1, 3, 20, 30)), torch.ones(1, 3, 20, 30))


def test_an_unknown_resampling_is_refused(tmp_path: Path) -> None:
    settings = {"size": 32, "resample": 1, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match="resample 1 is neither"):
        Frame.of(tmp_path)
