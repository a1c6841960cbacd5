from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

# Their assertions are to be explained as those of the tests are.
pytest.register_assert_rewrite("proofs", "tiny_models", "tiny_uno")

from tiny_models import Model, model, models, small_references  # noqa: E402, F401


@pytest.fixture(scope="session")
def folder(models: Callable[[str], Model]) -> Path:  # noqa: F811
    """A tiny FluxKontextPipeline."""
    return models("flux-kontext").folder


@pytest.fixture(scope="session")
def flux_folder(models: Callable[[str], Model]) -> Path:  # noqa: F811
    """A tiny FluxPipeline, with noise levels that depend on the image's size as FLUX.1's do."""
    return models("uno").folder


@pytest.fixture(scope="session")
def uno_adapter(flux_folder: Path) -> Path:
    """A file of UNO's LoRA for it."""
    return flux_folder / "dit_lora.safetensors"
