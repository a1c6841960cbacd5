"""What a rollout keeps, how batch sizes follow memory, and what happens where it runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from embedded import embedded
from running import run_training
from torch import Tensor

from customized_grpo.config import Config, ConfigError, RolloutConfig, TrainConfig
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy
from customized_grpo.trainer import memory
from customized_grpo.trainer.memory import BatchSize, measure_drawing, peak_bytes
from customized_grpo.trainer.optimizer import WholeOptimizer, build_optimizer
from customized_grpo.trainer.processes import ALONE
from customized_grpo.trainer.rollout import Trajectories, draw_images, noise_levels
from customized_grpo.trainer.update import Items, Updater, draw_trained_steps
from customized_grpo.utils.records import read_records

Make = Callable[..., Config]
CPU = torch.device("cpu")
CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
)


@pytest.fixture(scope="module")
def policy(make_config: Make) -> Policy:
    return build_policy(make_config().policy)


def drawn(policy: Policy, config: Config, images: int = 6, **options: Any) -> tuple[list[Trajectories], Tensor, Tensor]:
    """Images of two pairs; all their trained steps, and the noise levels."""
    dataset = open_dataset(config.data)
    pairs = [dataset[i // 3] for i in range(images)]
    conditions = [policy.encode(pair.prompt, pair.references) for pair in pairs]
    keys = [(pair.key, i % 3) for i, pair in enumerate(pairs)]
    rollout, steps = config.rollout, range(config.rollout.steps - 1)
    sigmas = noise_levels(policy, rollout.steps, rollout.shift)
    trained = draw_trained_steps(steps, config.train.trained_fraction, 0, 0, keys)
    if options.pop("sparse", False):
        options["trained"] = trained
    return (
        list(draw_images(policy, conditions, keys, rollout, sigmas, steps, seed=0, iteration=0, **options)),
        trained,
        sigmas,
    )


def test_only_trained_steps_are_kept_and_with_the_same_bits(policy: Policy, make_config: Make) -> None:
    config = make_config(steps=11, trained_fraction=0.3)
    (whole,), trained, sigmas = drawn(policy, config, means=True)
    (sparse,), _, _ = drawn(policy, config, means=True, sparse=True)
    (bare,), _, _ = drawn(policy, config, sparse=True)
    assert torch.equal(sparse.clean, whole.clean)
    assert torch.equal(sparse.steps, trained) and trained.shape == (6, 3)
    advantages = torch.randn(6, 3)
    kept, of_all = (Items.chosen(b, {0, 2, 3, 5}, trained, advantages, sigmas) for b in (sparse, whole))
    assert len(kept) == 12
    for name in ("latents", "next_latents", "sigma", "sigma_next", "mean", "log_density", "advantages"):
        assert torch.equal(getattr(kept, name), getattr(of_all, name)), name
    # 10 steps: 11 states, 10 means, 10 densities of each image; 3 trained: at most 6 states, 3 means, 3 densities.
    state = whole.clean[0].nbytes
    assert whole.nbytes == 6 * (21 * state + 10 * 4)
    assert sparse.nbytes <= 6 * (9 * state + 3 * 4)
    assert bare.nbytes == sparse.nbytes - 6 * 3 * state, "means are kept for ratio=guard alone"
    print(f"kept: {whole.nbytes} bytes of all steps, {sparse.nbytes} of the trained ones, {bare.nbytes} without means")


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


def one_update(policy: Policy, config: Config, parts: Tensor | None = None) -> tuple[dict[str, float], Tensor]:
    """What an update of one batch reports, and the gradient it takes its step by.

    Its advantages are random, or for two objectives `parts` of them each.
    """
    batches, trained, sigmas = drawn(policy, config, sparse=True)
    taken: list[Tensor] = []
    weights = list(policy.trainable().values())

    class Spy(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            taken.append(torch.cat([weight.grad.flatten().clone() for weight in weights if weight.grad is not None]))

    objectives = 1 if parts is None else len(parts)
    optimizer = WholeOptimizer(Spy(weights, lr=0.0), weights, config.train.max_gradient_norm, objectives=objectives)
    updater = Updater(policy, optimizer, config.train, SAMPLERS[config.rollout.sampler], config.rollout.eta)
    advantages = torch.randn(trained.shape, generator=torch.Generator().manual_seed(0))
    advantages = advantages if parts is None else advantages[..., None] * parts
    items = [Items.chosen(batch, set(range(6)), trained, advantages, sigmas) for batch in batches]
    record = updater.update(items, sigmas[1])
    assert len(taken) == 1
    return record, taken[0]


@pytest.mark.parametrize("where", ["gpu", "cpu", "backward"])
def test_an_update_that_ran_out_of_memory_is_the_update(
    policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """The third micro-batch fails, when two, and in a backward pass part of its own, have left their gradients."""
    config = make_config(batch_size=4, max_gradient_norm=1e9, kl_weight=0.1)
    whole, expected = one_update(policy, config)
    # Drawing takes 4 calls of the batch; each micro-batch one, and one for its reference.
    monkeypatch.setattr(policy, "velocity", failing(policy.velocity, 4 + 5, where))
    with caplog.at_level(logging.WARNING):
        record, found = one_update(policy, config)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert record.pop("replay_error") < 1e-6 and whole.pop("replay_error") < 1e-6  # rounding, which batch sizes change
    assert record == pytest.approx(whole, rel=1e-4, abs=1e-7)
    told = [entry.message for entry in caplog.records if "out of memory" in entry.message]
    assert len(told) == 1
    assert told[0].startswith("train.batch_size: out of memory with 4 items (") and told[0].endswith("goes on with 2")


def test_objectives_that_agree_are_their_sum_and_opposed_ones_stand_still(policy: Policy, make_config: Make) -> None:
    """By any micro-batches; a KL term is shared out among them."""
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


def test_a_single_item_that_does_not_fit_ends_the_run(
    policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def velocity(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    size = BatchSize("rollout.batch_size", 6)
    monkeypatch.setattr(policy, "velocity", velocity)
    with pytest.raises(ConfigError, match=r"rollout\.batch_size: out of memory with one item .*9 GiB.*; set policy"):
        drawn(policy, make_config(), size=size)
    assert size.size == 1
    alone = BatchSize("rollout.batch_size", 6, recovers=False)
    with pytest.raises(ConfigError, match=r"out of memory with 6 items .*; set it to 3: processes that share"):
        drawn(policy, make_config(), size=alone)


def test_another_error_is_not_taken_for_one_of_memory() -> None:
    def work(part: slice) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(BatchSize("x", 4).run(8, work))


def test_images_drawn_after_memory_ran_out_are_the_same(
    policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,), _, _ = drawn(policy, make_config())
    monkeypatch.setattr(policy, "velocity", failing(policy.velocity, 3, "gpu"))
    parts, _, _ = drawn(policy, make_config())
    assert [batch.images.tolist() for batch in parts] == [[0, 1, 2], [3, 4, 5]]
    torch.testing.assert_close(torch.cat([batch.clean for batch in parts]), whole.clean, rtol=1e-4, atol=1e-4)


def test_the_peak_is_of_what_lives_at_the_same_time() -> None:
    def work() -> Tensor:
        for _ in range(3):
            first = torch.ones(1000)  # 4000 bytes, freed each time
            second = first + first
            second.add_(1).view(10, 100)  # nothing new
            del first
        return second

    assert peak_bytes(CPU, work) == 12000  # the second of a round lives until the next is made


def test_an_automatic_size_is_what_fits(policy: Policy, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes chosen for two amounts of free memory, and what batches of these sizes then really hold."""
    config = make_config(batch_size="auto")
    (batch,), trained, sigmas = drawn(policy, config)
    weights = list(policy.trainable().values())
    condition = batch.conditions.select(torch.tensor([0]))
    chosen = []
    for free in (2_000_000, 6_000_000):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        optimizer = build_optimizer(weights, config.train, ALONE)
        updater = Updater(policy, optimizer, config.train, SAMPLERS[config.rollout.sampler], config.rollout.eta)
        assert updater.size.auto
        updater.measure_size(condition, sigmas, most=10_000)
        assert all(weight.grad is None for weight in weights), "the probe leaves nothing"
        size = updater.size.size
        rows = torch.arange(size) % 6
        items = Items.of(batch, rows, trained[rows, 0], torch.ones(size), sigmas)
        items = replace(items, same=torch.arange(size))  # as if each were an image of its own

        def work(updater: Updater = updater, items: Items = items) -> None:
            updater._accumulate([items], len(items), torch.ones(()), sigmas[1], None)

        assert 0.2 * free < peak_bytes(CPU, work) <= free
        chosen.append(size)
        for weight in weights:
            weight.grad = None
    assert chosen[1] > 2 * chosen[0] > 2
    drawing = BatchSize("rollout.batch_size", "auto")
    measure_drawing(drawing, policy, condition, 5, lambda size: size - 1)
    assert (drawing.size, drawing.auto) == (4, False), "no more than there are; then what all processes agree on"


def test_free_memory_of_a_cpu_is_what_the_system_calls_available(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    whole = memory.free_bytes(CPU)
    assert 0 < whole <= 1.2 * 1024 * int(told)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(CPU) < 0.5 * whole, "shared by the processes of this machine"


def test_a_run_with_automatic_sizes_is_that_of_whole_batches(make_config: Make, tmp_path: Path) -> None:
    config = make_config(iterations=1, trained_fraction=0.6)
    automatic = config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"batch_size": "auto"}),
            "train": config.train.model_copy(update={"batch_size": "auto"}),
        }
    )
    run_training(automatic, tmp_path / "auto")
    run_training(config, tmp_path / "cut")
    (one,), (other,) = (read_records(tmp_path / name / "metrics.jsonl") for name in ("auto", "cut"))
    for name in one.keys() - {"kl", "drift"}:
        if not name.startswith("seconds/"):
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), name


def test_sizes_are_numbers_or_auto() -> None:
    assert load_config(None, ["rollout.batch_size=auto", "train.batch_size=3"]).rollout.batch_size == "auto"
    assert (embedded(RolloutConfig).batch_size, embedded(TrainConfig).batch_size) == (48, 120)
    for value in ("0", "many", "2.5", "null"):
        with pytest.raises(ConfigError) as error:
            load_config(None, [f"train.batch_size={value}"])
        assert "train.batch_size: should be a number of at least 1, or auto" in str(error.value)
        assert len(str(error.value).splitlines()) == 1
