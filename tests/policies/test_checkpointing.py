"""Gradient checkpointing: gradients of the same bits, and what is kept of a block, in host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from proofs import PROMPT
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from customized_grpo.policies import checkpointing


def test_activations_that_wait_on_the_host_change_no_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []

    def on_host(pin_memory: bool, device_type: str) -> Any:  # a CPU is its own host: as if it were not
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            moved.append(tensor)
            return tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)

    monkeypatch.setattr(checkpointing, "save_on_cpu", on_host)
    proofs.checkpointing_changes_no_gradient(
        lambda wanted: proofs.kontext(folder, gradient_checkpointing=wanted, offload_activations=wanted),
        lambda policy: policy.encode(PROMPT, [proofs.random_image(16, 24, 0)]),
    )
    transformer = proofs.kontext(folder)._transformer
    blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    # Of each block its inputs, and nothing of what it computes.
    rows = [tensor for tensor in moved if tensor.ndim == 3]
    assert blocks <= len(rows) <= 2 * blocks and len(moved) <= 8 * blocks


def test_activations_wait_where_something_is_kept(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"needs policy\.gradient_checkpointing=true"):
        proofs.kontext(folder, offload_activations=True)


class Block(nn.Module):
    """Two streams, modulated by a tree of tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), 0

    def forward(self, message: Tensor, shown: Tensor, numbers: tuple[Tensor, dict[str, Tensor]], more: None) -> Any:
        self.calls += 1
        scale, shift = numbers[0], numbers[1]["shift"]
        made = shown + scale * self.outer(torch.tanh(self.inner(shown) + message.mean(1, keepdim=True))) + shift
        return message * scale + made.mean(1, keepdim=True), made


def streams() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    shapes = ((2, 3, 4), (2, 5, 4), (2, 1, 4), (2, 1, 4))
    message, shown, scale, shift = (torch.randn(shape, generator=draws).requires_grad_() for shape in shapes)
    return message, shown, scale, shift


def gradients(block: Block, compute: Any, *, frozen: bool = False, twice: bool = False) -> list[Tensor]:
    """Of both streams' last values, of inputs and weights."""
    message, shown, scale, shift = leaves = streams()
    block.inner.requires_grad_(not frozen)
    message, shown = compute(block, message, shown, (scale, {"shift": shift}), None)
    wanted = [*leaves, *(weight for weight in block.parameters() if weight.requires_grad)]
    end = shown.square().sum() + message.sum()
    found = torch.autograd.grad(end, wanted, retain_graph=twice)
    if twice:
        again = torch.autograd.grad(end, wanted)
        assert all(map(torch.equal, found, again))
    return [message.detach(), shown.detach(), *found]


def plainly(block: nn.Module, *given: Any) -> Any:
    return block(*given)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_gradients_of_a_block_are_of_the_same_bits(frozen: bool, twice: bool) -> None:
    """Of its inputs however deep in a tree, of its weights that are trained, and in a second backward pass."""
    again = checkpointing.checkpointing(torch.device("cpu"), on_host=False)
    expected, block = gradients(Block(), plainly, frozen=frozen), Block()
    found = gradients(block, again, frozen=frozen, twice=twice)
    assert block.calls == 2 + twice, "computed once more for each backward pass"
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_blocks_in_shards_are_left_to_torch(tmp_path: Path) -> None:
    again = checkpointing.checkpointing(torch.device("cpu"), on_host=False)
    expected = gradients(Block(), plainly)[6:]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        block = Block()
        fully_shard(block, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        message, shown, scale, shift = streams()
        message, shown = again(block, message, shown, (scale, {"shift": shift}), None)
        (shown.square().sum() + message.sum()).backward()
        assert block.calls == 2
        for weight, gradient in zip(block.parameters(), expected, strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad.full_tensor(), gradient)  # type: ignore[attr-defined]
    finally:
        torch.distributed.destroy_process_group()
