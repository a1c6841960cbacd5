"""Small random judges of the stock classes, in folders as the hub's are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from customized_grpo.protocols import Pair

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CONTEXT = 24
FRAME = {
    "do_resize": True,
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "do_convert_rgb": True,
}


def write_frame(folder: Path, kind: str) -> None:
    text = json.dumps({**FRAME, "image_processor_type": kind})
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    Dinov2Model(config).half().save_pretrained(folder)
    write_frame(folder, "BitImageProcessor")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(ByteLevel.alphabet())
    tokens = [
        *letters,
        *[f"{letter}</w>" for letter in letters],
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    text = {
        **small,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_frame(folder, "CLIPImageProcessor")
    return folder


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    """A pair of random pictures; `seed` decides them, `sizes` (width, height) counts them."""

    def make(
        key: str,
        seed: int = 0,
        sizes: tuple[tuple[int, int], ...] = ((48, 40),),
        masked: bool = True,
    ) -> Pair:
        rng = np.random.default_rng(seed)
        references, masks = [], []
        for width, height in sizes:
            references.append(Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)))
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
            masks.append(Image.fromarray(mask) if masked else None)
        return Pair(key, f"a cat {seed}", tuple(references), tuple(masks))

    return make
