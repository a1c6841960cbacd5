"""torch.compile as an option: the same velocity and gradients within rounding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from proofs import learned
from tiny_models import Model


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "eager"),  # captures the graphs, and does not compile them, which takes most of the time
        pytest.param("cpu", "inductor", marks=pytest.mark.slow),
        pytest.param("cuda", "inductor", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("model", ["flux-kontext"], indirect=True)
def test_a_compiled_policy_is_the_same_within_rounding(
    model: Model, device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = (model.policy(device, compile=wanted) for wanted in (False, True))
    expected = learned(plain, model.encode(plain))
    try:
        found = learned(compiled, model.encode(compiled))
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if "InvalidCxxCompiler" in str(error) or "No working C++ compiler" in str(error):
            pytest.skip("torch.compile needs a C++ compiler on a CPU")
        raise
    assert len(found) == len(expected) > 2
    for one, other in zip(expected, found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"
