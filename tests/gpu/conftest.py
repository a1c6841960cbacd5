"""Tests of what a GPU computes; `tiny_models.each_model` says which of them run on the CPU as well."""

from __future__ import annotations

import pytest
import torch

pytest.register_assert_rewrite("proofs", "steps", "tiny_models", "tiny_uno")

from tiny_models import model, models, small_references  # noqa: E402, F401


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 convolutions in float32: by default cuDNN rounds their inputs to TF32's 11 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
