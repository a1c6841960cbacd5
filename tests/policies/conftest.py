from __future__ import annotations

from pathlib import Path

import pytest
import tiny

# Its assertions are to be explained as those of the tests are.
pytest.register_assert_rewrite("proofs", "tiny_uno")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FluxKontextPipeline."""
    return tiny.save_flux_kontext(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def dynamic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, its noise levels shifted by the size of the picture."""
    return tiny.save_flux_kontext(tmp_path_factory.mktemp("dynamic"), dynamic_shifting=True)


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FluxPipeline, its noise levels shifted by the size of the picture as FLUX.1's are."""
    from tiny_uno import LAYERS

    return tiny.save_flux(tmp_path_factory.mktemp("flux"), layers=LAYERS, dynamic_shifting=True)


@pytest.fixture(scope="session")
def uno_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of UNO's LoRA for it."""
    from tiny_uno import save, uno_lora

    return save(tmp_path_factory.mktemp("adapter") / "dit_lora.safetensors", uno_lora())
