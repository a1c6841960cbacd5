"""Updates: ratios at unchanged weights are exactly 1; skipped updates; memory that runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from running import draw, metrics_of, run_training, updater_of
from torch import Tensor

from customized_grpo.config import Config, ConfigError
from customized_grpo.protocols import Policy
from customized_grpo.trainer import memory
from customized_grpo.trainer.grpo import GRPOUpdater, Items
from customized_grpo.trainer.memory import BatchSize, measure_sampling, peak_bytes
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.processes import ALONE
from customized_grpo.trainer.update import Updater, mean_of_updates

Make = Callable[..., Config]
CPU = torch.device("cpu")
CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
)
ROUNDING = 3e-5  # as measured on a GPU between batch sizes; the clip range is 1e-4


def one_update(policy: Policy, config: Config, parts: Tensor | None = None) -> tuple[dict[str, float], Tensor]:
    """Metrics and gradient of an update with random advantages, or for two objectives `parts` of them."""
    batches, trained = draw(policy, config, sparse=True)
    updater, spy = updater_of(policy, config, 1 if parts is None else len(parts))
    advantages = torch.randn(trained.shape, generator=torch.Generator().manual_seed(0))
    advantages = advantages if parts is None else advantages[..., None] * parts
    record = updater.update([Items.chosen(b, set(range(6)), trained, advantages) for b in batches])
    return record, spy.taken[0]


@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_first_update_ignores_rounding_between_replay_and_sampling(
    policy: Policy, make_config: Make, ratio: str
) -> None:
    config = make_config(ratio=ratio, clip_range=1e-9, batch_size=3)
    (batch,), trained = draw(policy, config, range(3), means=True)
    noise = torch.empty_like(batch.log_density).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    noise.view(-1)[0] = 1.0
    assert batch.mean is not None
    rounded = replace(batch, log_density=batch.log_density + ROUNDING * noise, mean=batch.mean + 1e-4)
    gradients, records = [], []
    for given in (batch, rounded):
        updater, spy = updater_of(policy, config)
        items = Items.chosen(given, {0, 1, 2}, trained, torch.linspace(-1, 1, trained.numel()).view_as(trained))
        for _ in range(2):  # in the second the weights count as changed: the stored densities are used
            records.append(updater.update([items]))
            assert not updater.on_policy
        gradients.append(spy.taken[0])
    exact, exact_later, other, other_later = records
    assert torch.equal(*gradients)
    assert exact["replay_error"] == 0.0
    assert other["replay_error"] == pytest.approx(ROUNDING, rel=0.02)
    assert exact["clip_fraction"] == other["clip_fraction"] == exact_later["clip_fraction"] == 0.0
    assert exact["loss"] == other["loss"]
    assert other_later["clip_fraction"] > 0, "in later updates, rounding beyond the clip range clips"
    assert "replay_error" not in other_later


def test_skipped_update_stays_on_policy(policy: Policy, make_config: Make) -> None:
    (batch,), trained = draw(policy, make_config(), range(3))
    updater, _ = updater_of(policy, make_config())
    items = Items.chosen(batch, {0, 1, 2}, trained, torch.full(trained.shape, torch.inf))
    assert updater.update([items])["share/skipped"] == 1.0
    assert updater.on_policy
    assert mean_of_updates([{"loss": 1.0, "replay_error": 4.0}, {"loss": 3.0}]) == {"loss": 2.0, "replay_error": 4.0}


def test_only_trained_steps_are_stored_and_with_the_same_bits(policy: Policy, make_config: Make) -> None:
    config = make_config(steps=11, trained_fraction=0.3)
    (whole,), trained = draw(policy, config, means=True)
    (sparse,), _ = draw(policy, config, means=True, sparse=True)
    (bare,), _ = draw(policy, config, sparse=True)
    assert torch.equal(sparse.clean, whole.clean)
    assert torch.equal(sparse.steps, trained) and trained.shape == (6, 3)
    kept, of_all = (Items.chosen(b, {0, 2, 3, 5}, trained, torch.zeros(6, 3)) for b in (sparse, whole))
    assert len(kept) == 12
    for name in ("latents", "next_latents", "sigma", "sigma_next", "mean", "log_density"):
        assert torch.equal(getattr(kept, name), getattr(of_all, name)), name
    # 10 steps: 11 states, 10 means, 10 densities of each image; 3 trained: at most 6 states, 3 means, 3 densities.
    state = whole.clean[0].nbytes
    assert whole.nbytes == 6 * (21 * state + 10 * 4)
    assert sparse.nbytes <= 6 * (9 * state + 3 * 4)
    assert bare.nbytes == sparse.nbytes - 6 * 3 * state, "means are stored for ratio=guard alone"


def failing(original: Callable[..., Tensor], call: int, where: str) -> Callable[..., Tensor]:
    """The velocity, but its `call`-th call runs out of memory: on a GPU, on a CPU, or in its backward pass."""
    calls = []

    def velocity(latents: Tensor, *rest: Any) -> Tensor:
        calls.append(len(latents))
        if len(calls) != call:
            return original(latents, *rest)
        if where == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes.\nmore")
        if where == "cpu":
            raise RuntimeError(CPU_ERROR)
        first = next(iter(original.__self__.trainable().values()))  # type: ignore[attr-defined]

        def fails(gradient: Tensor) -> None:
            handle.remove()
            raise torch.OutOfMemoryError("CUDA out of memory")

        handle = first.register_hook(fails)
        return original(latents, *rest)

    return velocity


@pytest.mark.parametrize("where", ["cpu", "backward"])
def test_an_update_that_ran_out_of_memory_is_the_update(
    policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """The third micro-batch fails, when two, and in a backward pass part of its own, have left their gradients."""
    config = make_config(batch_size=4, max_gradient_norm=1e9, kl_weight=0.1)
    whole, expected = one_update(policy, config)
    # Sampling takes 4 calls of the batch; each micro-batch one, and one for its reference.
    monkeypatch.setattr(policy, "velocity", failing(policy.velocity, 4 + 5, where))
    with caplog.at_level(logging.WARNING):
        record, found = one_update(policy, config)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert record.pop("replay_error") < 1e-6 and whole.pop("replay_error") < 1e-6  # rounding of other batch sizes
    assert record == pytest.approx(whole, rel=1e-4, abs=1e-7)
    (line,) = [entry.message for entry in caplog.records if "out of memory" in entry.message]
    assert line.startswith("train.batch_size: out of memory with 4 items (") and line.endswith("continuing with 2")


def test_objectives_that_agree_are_their_sum_and_opposed_ones_cancel(policy: Policy, make_config: Make) -> None:
    """By any micro-batches; a KL term is split among them."""
    config = make_config(batch_size=4, max_gradient_norm=1e9, kl_weight=0.1)
    record, whole = one_update(policy, config)
    agreeing, found = one_update(policy, config, torch.tensor([0.25, 0.75]))
    close = {"rtol": 1e-3, "atol": 1e-5 * float(whole.abs().max())}
    torch.testing.assert_close(found, whole, **close)
    assert agreeing == pytest.approx(record, rel=1e-4, abs=1e-7)
    _, opposed = one_update(policy, make_config(batch_size=4, max_gradient_norm=1e9), torch.tensor([1.0, -0.5]))
    assert float(opposed.abs().max()) < 1e-4 * float(whole.abs().max())
    smaller = make_config(batch_size=2, max_gradient_norm=1e9, kl_weight=0.1)
    torch.testing.assert_close(one_update(policy, smaller, torch.tensor([0.25, 0.75]))[1], found, **close)


def test_sampling_continues_with_smaller_batches_or_ends_in_one_line(
    policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,), _ = draw(policy, make_config())
    with monkeypatch.context() as patch:
        patch.setattr(policy, "velocity", failing(policy.velocity, 3, "gpu"))
        parts, _ = draw(policy, make_config())
    assert [batch.images.tolist() for batch in parts] == [[0, 1, 2], [3, 4, 5]]
    torch.testing.assert_close(torch.cat([batch.clean for batch in parts]), whole.clean, rtol=1e-4, atol=1e-4)

    def velocity(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    size = BatchSize("rollout.batch_size", 6)
    monkeypatch.setattr(policy, "velocity", velocity)
    with pytest.raises(ConfigError, match=r"rollout\.batch_size: out of memory with one item .*9 GiB.*; set policy"):
        draw(policy, make_config(), size=size)
    assert size.size == 1
    alone = BatchSize("rollout.batch_size", 6, recovers=False)
    with pytest.raises(ConfigError, match=r"out of memory with 6 items .*; set it to 3, because processes that share"):
        draw(policy, make_config(), size=alone)

    def work(part: slice) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(BatchSize("x", 4).run(8, work))


def test_an_automatic_size_is_what_fits(policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes chosen for two amounts of free memory, and what batches of these sizes then really need."""
    config = make_config(batch_size="auto")
    (batch,), trained = draw(policy, config)
    weights = list(policy.trainable().values())
    condition = batch.conditions.select(torch.tensor([0]))
    chosen = []
    for free in (2_000_000, 6_000_000):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        optimizer = build_optimizer(weights, config.train, ALONE)
        updater = GRPOUpdater(policy, optimizer, config)
        updater.measure_size(condition, batch.sigmas, most=10_000)
        assert all(weight.grad is None for weight in weights), "the probe leaves nothing"
        size = updater.size.size
        rows = torch.arange(size) % 6
        items = Items.of(batch, rows, trained[rows, 0], torch.ones(size))
        items = replace(items, same=torch.arange(size))  # as if each were an image of its own

        def work(updater: Updater = updater, items: Items = items) -> None:
            updater._accumulate([items], len(items), torch.ones(()), None)

        assert 0.2 * free < peak_bytes(CPU, work) <= free
        chosen.append(size)
        optimizer.clear()
    assert chosen[1] > 2 * chosen[0] > 2
    drawing = BatchSize("rollout.batch_size", "auto")
    measure_sampling(drawing, policy, condition, 5, lambda size: size - 1)
    assert (drawing.size, drawing.auto) == (4, False), "no more than there are; then what all processes agree on"


def test_a_run_with_automatic_sizes_is_that_of_whole_batches(make_config: Make, whole: Path, tmp_path: Path) -> None:
    config = make_config(batch_size="auto")
    rollout = config.rollout.model_copy(update={"batch_size": "auto"})
    train = config.train.model_copy(update={"iterations": 1, "schedule": "constant"})
    run_training(config.model_copy(update={"rollout": rollout, "train": train}), tmp_path)
    (one,), other = metrics_of(tmp_path), metrics_of(whole)[0]
    for name in one.keys() - {"kl", "drift"}:
        assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), name
