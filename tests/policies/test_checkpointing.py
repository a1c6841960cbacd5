"""What gradient checkpointing keeps of a block, in host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from proofs import PROMPT

from customized_grpo.policies import checkpointing
from customized_grpo.policies.flux_kontext import FluxKontextPolicy


def policy_of(folder: Path, **changes: Any) -> FluxKontextPolicy:
    return proofs.built(FluxKontextPolicy, folder, reference_sizes=[(16, 24)], **changes)


def test_activations_that_wait_on_the_host_change_no_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []

    def on_host(pin_memory: bool, device_type: str) -> Any:  # a CPU is its own host: as if it were not
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            moved.append(tensor)
            return tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)

    monkeypatch.setattr(checkpointing, "save_on_cpu", on_host)
    proofs.checkpointing_changes_no_gradient(
        lambda wanted: policy_of(folder, gradient_checkpointing=wanted, offload_activations=wanted),
        lambda policy: policy.encode(PROMPT, [proofs.random_picture(16, 24, 0)]),
    )
    transformer = policy_of(folder)._transformer
    blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    # Of each block its inputs, and nothing of what it computes.
    rows = [tensor for tensor in moved if tensor.ndim == 3]
    assert blocks <= len(rows) <= 2 * blocks and len(moved) <= 8 * blocks


def test_activations_wait_where_something_is_kept(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"is of policy\.gradient_checkpointing, which is off"):
        policy_of(folder, offload_activations=True)
