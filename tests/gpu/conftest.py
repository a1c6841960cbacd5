"""Tests of what a GPU computes; `tiny_models.each_model` says which of them run on the CPU as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import tiny_qwen
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

pytest.register_assert_rewrite("proofs", "steps", "tiny_models", "tiny_uno")

from tiny_models import Model, made  # noqa: E402 - after what explains its assertions


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """The tiny model of a name, made once."""
    found: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in found:
            found[name] = made(name, tmp_path_factory.mktemp(name))
        return found[name]

    return get


@pytest.fixture
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Model:
    return models(request.param)


@pytest.fixture(autouse=True)
def _small_references(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Qwen-Image-Edit's own sizes at a 256th of their area and less, and its processor without the part for videos."""
    monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(plus, "CONDITION_IMAGE_SIZE", 96 * 96)
    with tiny_qwen.without_video():
        yield


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 convolutions in float32: by default cuDNN rounds their inputs to TF32's 11 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
