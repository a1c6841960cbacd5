"""Framing on tensors is that of the stock image processors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_rewards
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from customized_grpo.rewards import RewardError
from customized_grpo.rewards.frame import open_frame, open_square
from customized_grpo.utils.pixels import to_tensor


@pytest.mark.parametrize("size", [(48, 40), (36, 36), (300, 33), (20, 24)])
def test_agrees_with_the_stock_processor(size: tuple[int, int], dino_folder: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(64, 192, (*size[::-1], 3), dtype=np.uint8))
    expected = BitImageProcessorPil.from_pretrained(dino_folder)(image, return_tensors="pt")
    frame = open_frame(str(dino_folder))
    pixels = frame(to_tensor(image)[None])
    assert pixels.shape == expected.pixel_values.shape
    # PIL rounds between its two passes; a step of 8 bits is 0.0175 here. It clips there as well, so that
    # images near black and white differ by more: none of those.
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
    frame = open_frame(str(tmp_path))
    assert frame(torch.ones(2, 3, 50, 50)).shape == (2, 3, 20, 30)
    assert torch.equal(frame(torch.ones(1, 3, 20, 30)), torch.ones(1, 3, 20, 30))


def test_one_number_is_a_square_unless_it_is_cropped(tmp_path: Path) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "size": 32, **tiny_rewards.COLOURS}
    for crop, shape in (({}, (32, 32)), ({"crop_size": 24, "do_center_crop": True}, (24, 24))):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | crop), encoding="utf-8")
        assert open_frame(str(tmp_path))(torch.ones(1, 3, 40, 60)).shape[-2:] == shape
    assert open_frame(str(tmp_path)).shortest == 32


def test_an_unknown_resampling_is_refused(tmp_path: Path) -> None:
    settings = {"size": 32, "resample": 1, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(RewardError, match="resample 1 is neither"):
        open_frame(str(tmp_path))


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ({"height": 64, "width": 64}, 64),
        ({"shortest_edge": 800, "longest_edge": 1333}, 800),
        (518, 512),
    ],
)
def test_a_square_has_the_size_of_the_processor(size: object, side: int, tmp_path: Path) -> None:
    tiny_rewards.write_frame(tmp_path, "SegformerImageProcessor", {**tiny_rewards.COLOURS, "size": size})
    assert open_square(str(tmp_path)).size == (side, side)
