"""What moves between a GPU and host memory, what is measured there, and what happens where its memory runs out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from devices import each_device
from proofs import apart, noise, tune
from steps import sample, update
from tiny_models import Model, each_model
from torch import Tensor

from customized_grpo.trainer.memory import BatchSize, free_bytes, measure_sampling, peak_bytes
from customized_grpo.utils.memory import is_out_of_memory

MB = 2**20


@each_model("flux-kontext", of=["flux-kontext", "flux2-klein", "qwen-image-edit"])
@pytest.mark.parametrize("conditions", [False, True])
def test_parts_that_are_offloaded_compute_what_they_did(
    device: str, model: Model, tmp_path: Path, conditions: bool
) -> None:
    """Text encoders and VAE wait in host memory while the transformer works, or are forgotten for kept conditions."""
    settings = {"offload": True, "conditions": tmp_path if conditions else None}
    there, moved = model.policy(device), model.policy(device, **settings)
    results = []
    for policy in (there, moved):
        tune(policy)
        rows = model.encode(policy)
        with torch.no_grad():
            velocity = policy.velocity(noise(policy), torch.tensor([0.5]), rows)
        encoder = policy._pipeline.text_encoder
        if policy is there:
            assert encoder.device.type == device
        elif conditions:
            assert encoder is None
        else:
            assert encoder.device.type == policy._pipeline.vae.device.type == "cpu"
        assert policy._transformer.device.type == device
        results.append((velocity, policy.decode(noise(policy)), model.encode(policy)))
    for one, other in zip(results[0][:2], results[1][:2], strict=True):
        assert apart(one, other) < 1e-5
    for name, row in results[0][2].rows.items():
        assert row.device.type == results[1][2].rows[name].device.type == device
        assert apart(row.float(), results[1][2].rows[name].float()) < 1e-5


@each_model("flux-kontext", of=["flux-kontext"])
def test_a_policy_that_is_offloaded_trains(device: str, model: Model) -> None:
    """Weights that the optimiser holds come back from host memory, where encoding sends them, as the same ones."""
    policies = [model.policy(device, offload=offload) for offload in (False, True)]
    after = []
    for policy in policies:
        tune(policy)
        held = policy.trainable()
        sampled = sample(model, policy)
        assert all(policy.trainable()[name] is weight for name, weight in held.items())
        after.append(update(policy, sampled).after)
    for name, weight in after[0].items():
        assert apart(weight, after[1][name]) < 1e-4  # a tenth of a step


@each_device
def test_the_peak_is_of_what_lives_at_the_same_time(device: str) -> None:
    def work() -> Tensor:
        for _ in range(3):
            first = torch.ones(MB, device=device)  # 4 MB, freed each time
            second = first + first
            second.add_(1)
            del first
        return second

    assert peak_bytes(torch.device(device), work) == pytest.approx(12 * MB, rel=0.01)


@each_device
def test_free_memory_falls_by_what_is_taken(device: str) -> None:
    before = free_bytes(torch.device(device))
    taken = torch.ones(64 * MB, device=device)
    assert before - free_bytes(torch.device(device)) > 128 * MB, "of 256; other programs may give some back"
    del taken


@each_device
def test_an_allocation_that_fails_is_known_as_one_of_memory(device: str) -> None:
    """So a batch that does not fit is halved until it does."""
    tried = []

    def work(part: slice) -> None:
        tried.append(part.stop - part.start)
        if tried[-1] > 2:
            torch.empty(2**50, device=device)

    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, device=device)
    assert is_out_of_memory(raised.value)
    list(BatchSize("rollout.batch_size", 8).run(8, work))
    assert tried == [8, 4, 2, 2, 2, 2]


@each_model("flux-kontext", of=["flux-kontext"])
def test_sizes_by_free_memory_are_all_that_is_queried_for(device: str, model: Model) -> None:
    """The tiny model's images fit at once; measuring leaves no gradient behind."""
    policy, size = model.policy(device), BatchSize("rollout.batch_size", "auto")
    measure_sampling(size, policy, model.encode(policy), 7, lambda size: size)
    assert (size.size, size.auto) == (7, False)
    assert all(weight.grad is None for weight in policy.trainable().values())
