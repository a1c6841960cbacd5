"""Tests of what a GPU computes; `tiny_models.each_model` says which of them run on the CPU as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

pytest.register_assert_rewrite("proofs", "steps", "tiny_models", "tiny_uno")

from tiny_models import Model, made, small_qwen  # noqa: E402 - after what explains its assertions


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
def _small_references() -> Iterator[None]:
    with small_qwen():
        yield


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 convolutions in float32: by default cuDNN rounds their inputs to TF32's 11 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
