"""The devices that a test runs on: a GPU where `-m gpu` asks for it, and in the ordinary suite the CPU.

A test of a GPU has a body for any device, and runs on the CPU too, with a model or two: so it is known to work where
there is no GPU.
"""

from __future__ import annotations

import pytest

GPU = "cuda"
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param(GPU, marks=pytest.mark.gpu)])
