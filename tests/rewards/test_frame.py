"""Framing on tensors is that of the stock image processors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_judges
import torch
from PIL import Image
from transformers import Siglip2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from customized_grpo.rewards.frame import Frame, PatchFrame, open_frame
from customized_grpo.utils.pixels import to_tensor


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


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (33, 120)])
def test_patches_agree_with_naflex(size: tuple[int, int], tmp_path: Path) -> None:
    folder = tiny_judges.siglip_naflex(tmp_path)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(64, 192, (*size[::-1], 3), dtype=np.uint8))
    expected = Siglip2ImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")
    frame = open_frame(folder)
    assert isinstance(frame, PatchFrame)
    inputs = frame.inputs(to_tensor(picture)[None])
    count = int(expected["pixel_attention_mask"].sum())
    assert inputs["spatial_shapes"].tolist() == expected["spatial_shapes"].tolist()
    assert inputs["pixel_values"].shape == (1, count, 3 * 8 * 8)
    assert (inputs["pixel_values"] - expected["pixel_values"][:, :count]).abs().max() < 0.06
    # The padding that is left out changes nothing.
    model = Siglip2Model.from_pretrained(folder).eval()
    padded = {**expected, "pixel_values": expected["pixel_values"].clone()}
    padded["pixel_values"][:, :count] = inputs["pixel_values"]
    with torch.no_grad():
        features = [model.get_image_features(**given).pooler_output for given in (inputs, padded)]
    torch.testing.assert_close(*features, atol=1e-4, rtol=1e-4)
