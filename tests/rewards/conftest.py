"""Small random rewards of the stock classes, in folders as the hub's are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_rewards
import torch
from PIL import Image

from customized_grpo.protocols import Pair


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return tiny_rewards.dinov2(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model for each kind of one or two encoders."""
    torch.manual_seed(0)
    makers = {
        tiny_rewards.dinov3: ("dino", "dino-patches"),
        tiny_rewards.clip: ("clip", "clip-image", "pickscore"),
        tiny_rewards.siglip: ("siglip", "siglip-image"),
    }
    made = {make: make(tmp_path_factory.mktemp("reward")) for make in makers}
    return {kind: made[make] for make, kinds in makers.items() for kind in kinds}


@pytest.fixture(scope="session")
def clip_folder(folders: dict[str, Path]) -> Path:
    return folders["clip"]


@pytest.fixture(scope="session")
def segformer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return tiny_rewards.segformer(tmp_path_factory.mktemp("segformer"), steps=40)


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    """A pair of random images; `seed` decides them, `sizes` (width, height) counts them."""

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
