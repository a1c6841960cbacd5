"""Devices to parametrise a test over: the CPU, and a GPU if `-m gpu` selects it."""

from __future__ import annotations

import pytest

GPU = "cuda"
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param(GPU, marks=pytest.mark.gpu)])
