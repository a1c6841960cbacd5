"""Operations of kernels of the CPU's own are counted as those of any other."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.iteration.flops import flop_counter


def test_a_product() -> None:
    with flop_counter() as counter:
        functional.linear(torch.randn(6, 10), torch.randn(4, 10))
    assert counter.get_total_flops() == 2 * 6 * 10 * 4


def test_attention_forth_and_back() -> None:
    """Two products forth; five back, one of which makes the scores anew."""
    batch, heads, asking, told, width = 2, 3, 5, 7, 8
    query = torch.randn(batch, heads, asking, width, requires_grad=True)
    key, value = (torch.randn(batch, heads, told, width, requires_grad=True) for _ in range(2))
    one = 2 * batch * heads * asking * told * width
    with flop_counter() as counter:
        attended = functional.scaled_dot_product_attention(query, key, value)
    assert counter.get_total_flops() == 2 * one
    with flop_counter() as counter:
        attended.sum().backward()
    assert counter.get_total_flops() == 5 * one
