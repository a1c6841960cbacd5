"""The benchmark of cached references compares two policies of the same weights, by turns."""

from __future__ import annotations

import torch
from rich.console import Console

from benchmarks.references import Size, compare, make_policies
from customized_grpo.policies.flux2_kv import Flux2KVPolicy


def test_both_policies_have_the_same_weights_and_are_timed() -> None:
    size = Size(heads=1, blocks=(1, 1), side=8, words=4, group=2)
    plain, cached = make_policies(size).values()
    weights = zip(plain._transformer.parameters(), cached._transformer.parameters(), strict=True)
    assert all(map(torch.equal, *zip(*weights, strict=True)))
    assert isinstance(cached, Flux2KVPolicy) and not isinstance(plain, Flux2KVPolicy)
    console = Console(record=True, width=120)
    found = compare(size, 1, console)
    assert list(found) == [1, 2] and all(set(one) == {"sample", "update", "iteration"} for one in found.values())
    assert all(ratio > 0 for one in found.values() for ratio in one.values())
    shown = console.export_text()
    assert all(word in shown for word in ("flux2-klein-kv", "speed-up", "images of 64 tokens"))
