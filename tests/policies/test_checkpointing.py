"""Gradient checkpointing: gradients of the same bits, and what is kept of a block, in host memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from proofs import PROMPT
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from customized_grpo.policies import checkpointing
from customized_grpo.policies.shortcuts import libraries_own


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
    """Two streams, modulated by a tree of tensors; the first stream can be handed on as it came."""

    def __init__(self, *, hand_on: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.hand_on, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), hand_on, 0

    def forward(self, message: Tensor, shown: Tensor, numbers: tuple[Tensor, dict[str, Tensor]], more: None) -> Any:
        self.calls += 1
        scale, shift = numbers[0], numbers[1]["shift"]
        made = shown + scale * self.outer(torch.tanh(self.inner(shown) + message.mean(1, keepdim=True))) + shift
        return (message if self.hand_on else message * scale + made.mean(1, keepdim=True)), made


def streams() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    shapes = ((2, 3, 4), (2, 5, 4), (2, 1, 4), (2, 1, 4))
    message, shown, scale, shift = (torch.randn(shape, generator=draws).requires_grad_() for shape in shapes)
    return message, shown, scale, shift


def gradients(blocks: list[Block], compute: Any, *, frozen: bool = False, twice: bool = False) -> list[Tensor]:
    """Of both streams' last values, of inputs and weights."""
    message, shown, scale, shift = leaves = streams()
    for block in blocks if frozen else ():
        block.inner.requires_grad_(False)
    for block in blocks:
        message, shown = compute(block, message, shown, (scale, {"shift": shift}), None)
    wanted = [*leaves, *(weight for block in blocks for weight in block.parameters() if weight.requires_grad)]
    end = shown.square().sum() + (0.0 if blocks[-1].hand_on else message.sum())
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
    expected, block = gradients([Block()], plainly, frozen=frozen), Block()
    found = gradients([block], again, frozen=frozen, twice=twice)
    assert block.calls == 2 + twice, "computed once more for each backward pass"
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("own", [True, False], ids=["ours", "torch"])
def test_gradients_of_a_chain_of_blocks(own: bool) -> None:
    """The last hands a stream on as it came, as FLUX.1's does; what all blocks share has the sum of their gradients."""
    again = checkpointing.checkpointing(torch.device("cpu"), on_host=False)
    expected = gradients([Block(), Block(hand_on=True)], plainly)
    with nullcontext() if own else libraries_own():
        found = gradients([Block(), Block(hand_on=True)], again)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_has_no_gradient_is_computed_once() -> None:
    again = checkpointing.checkpointing(torch.device("cpu"), on_host=False)
    block = Block().requires_grad_(False)
    message, shown, scale, shift = (leaf.detach() for leaf in streams())
    outputs = again(block, message, shown, (scale, {"shift": shift}), None)
    assert block.calls == 1 and not any(output.requires_grad for output in outputs)


def test_blocks_in_shards_are_left_to_torch(tmp_path: Path) -> None:
    again = checkpointing.checkpointing(torch.device("cpu"), on_host=False)
    expected = gradients([Block()], plainly)[6:]
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
