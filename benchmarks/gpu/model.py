"""Sections on the transformer alone: velocities, forward and backward passes, log-ratios."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.context import Context
from benchmarks.gpu.planned import difference, model_bytes
from benchmarks.gpu.sections import Row
from benchmarks.gpu.timing import Timing, alternate, both, ratio, synchronise
from benchmarks.iteration.flops import flop_counter
from customized_grpo.config import PolicyConfig
from customized_grpo.method import SAMPLERS, flow_sigmas
from customized_grpo.planning.shapes import of_all_blocks
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.policies.shortcuts import libraries_own

#: (rank, layers, checkpointing, batch sizes) of the section `training`.
_TRAINING = (
    (16, "attention", True, (4,)),
    (128, "attention", False, (1,)),
    (128, "attention", True, (4, 8)),  # of 1: the section `launch`
    (512, "default", True, (1, 4)),
)
_STEPS, _SHIFT = 25, 3.0
_ETAS = {"dance": 0.4, "flow": 0.7}


def peak(context: Context) -> Iterator[Row]:
    yield {"precision": "bfloat16", "tflops": context.peak / 1e12}


def velocity(context: Context) -> Iterator[Row]:
    policy = context.policy(context.policy_config(rank=16, gradient_checkpointing=True))
    flops = _flops(policy, _forward(context, policy, 1))
    for batch in context.sizes(1, 2, 4, 8, 12):
        yield context.attempt({"batch": batch}, partial(_velocity, context, policy, batch, flops))


def training(context: Context) -> Iterator[Row]:
    for rank, layers, checkpointing, batches in _TRAINING:
        config = context.policy_config(rank=rank, layers=layers, gradient_checkpointing=checkpointing)
        settings = {"rank": _rank(config), "layers": layers, "checkpointing": checkpointing}
        policy = context.policy(config)
        flops = _flops(policy, _backward(context, policy, 1))
        useful = flops
        if checkpointing:  # which computes the forward pass again
            useful -= _flops(policy, _forward(context, policy, 1))
        for batch in context.sizes(*batches):
            measure = partial(_training, context, policy, config, batch, flops, useful)
            yield context.attempt({**settings, "batch": batch}, measure)


def launch(context: Context) -> Iterator[Row]:
    """Small work, whose time is that of the CPU which launches it; with Python's garbage collector and without."""
    policy = context.policy(context.policy_config(rank=128, gradient_checkpointing=True))
    work = both(_backward(context, policy, 1))
    for collector in ("on", "off"):
        with nullcontext() if collector == "on" else _no_collector():
            repeats = 2 if context.tiny else 5 if collector == "on" else 3
            found = alternate(work, context.device, repeats=repeats)
        yield {"collector": collector, **_paired(found, 1)}


def high_resolution(context: Context) -> Iterator[Row]:
    side = 2 * context.side
    policy = context.policy(context.policy_config(rank=16, side=side))
    found = alternate(both(_forward(context, policy, 1)), context.device, repeats=2)
    yield {"what": "velocity", "side": side, **_paired(found, 1)}
    latents = context.inputs(policy, 1)[0]
    found = alternate({"ours": lambda: policy.decode(latents)}, context.device, repeats=2)
    yield {"what": "VAE decoding", "side": side, "ours": found["ours"].per()}


def by_attention(context: Context) -> Iterator[Row]:
    batch = context.sizes(4)[0]

    def measure(config: PolicyConfig) -> Row:
        policy = context.policy(config)
        work = {"velocity": _forward(context, policy, batch), "training": _backward(context, policy, batch)}
        found = alternate(work, context.device, repeats=1)
        return {name: timing.per(batch) for name, timing in found.items()}

    for name in attention_settings(context.device):
        more: dict[str, Any] = {} if name is None else {"attention": name}
        config = context.policy_config(rank=16, gradient_checkpointing=True, **more)
        yield context.attempt({"attention": name or "torch's choice"}, partial(measure, config))


def attention_settings(device: torch.device) -> list[str | None]:
    """Values of `policy.attention` that work on the device; None alone where there is no such setting."""
    try:
        from customized_grpo.policies.backends import available_backends  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return [None]
    return [str(name) for name in available_backends(device)]


def compiled(context: Context) -> Iterator[Row]:
    config = context.policy_config(rank=16, gradient_checkpointing=True, compile=True)
    batch = context.sizes(4)[0]
    with context.stance():
        policy = context.policy(config)
        for what, make in (("velocity", _forward), ("forward and backward", _backward)):
            work = make(context, policy, batch)
            began = time.perf_counter()
            work()
            synchronise(context.device)
            first = time.perf_counter() - began
            found = alternate({"": work}, context.device, repeats=2)
            yield {"what": what, "first_seconds": first, "seconds": found[""].per(batch)}


def ratios(context: Context) -> Iterator[Row]:
    """Log-densities of the same transitions by velocities of batches of different sizes."""
    policy = context.policy(context.policy_config(rank=16, gradient_checkpointing=True))
    sigmas = flow_sigmas(_STEPS, _SHIFT).to(context.device)
    trained = context.sizes(1, 4, 8)
    for sampled in context.sizes(4, 8, 12):
        latents, _, conditions = context.inputs(policy, sampled)
        steps = torch.linspace(0, _STEPS - 2, sampled).round().long()  # all but the last, which is deterministic
        sigma, sigma_next = sigmas[steps], sigmas[steps + 1]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(context.device)
        for way, inside in (("ours", nullcontext), ("diffusers + peft", libraries_own)):
            with inside():
                with torch.no_grad():
                    first = policy.velocity(latents, sigma, conditions)
                for size in trained:
                    parts = torch.split(torch.arange(sampled), size)
                    again = torch.cat(
                        [policy.velocity(latents[p], sigma[p], conditions.select(p)).detach() for p in parts]
                    )
                    for name, eta in _ETAS.items():
                        step = partial(SAMPLERS[name], latents, eta=eta, sigma_max=sigmas[1])
                        drawn = step(first, sigma, sigma_next, noise=noise)
                        replayed = step(again, sigma, sigma_next, next_sample=drawn.next_sample)
                        found = (replayed.log_density - drawn.log_density).abs().double()
                        yield {
                            "sampler": name, "eta": eta, "sampled": sampled, "trained": size, "way": way,
                            "largest": float(found.max()), "mean": float(found.mean()),
                        }  # fmt: skip


def _velocity(context: Context, policy: PipelinePolicy, batch: int, flops: int) -> Row:
    found = alternate(both(_forward(context, policy, batch)), context.device, repeats=3 if batch < 8 else 2)
    return _paired(found, batch) | _shares(context, found, batch, flops)


def _training(
    context: Context, policy: PipelinePolicy, config: PolicyConfig, batch: int, flops: int, useful: int
) -> Row:
    found = alternate(
        both(_backward(context, policy, batch)), context.device, repeats=3 if batch < 4 else 2 if batch < 8 else 1
    )
    planned, measured = model_bytes(config, batch), found["ours"].peak_bytes
    return {
        **_paired(found, batch),
        **_shares(context, found, batch, flops),
        "useful_share": _share(context, found["ours"], batch, useful),
        "planned_gb": planned / 1e9,
        "plan_difference": difference(planned, measured),
    }


def _paired(found: dict[str, Timing], items: int) -> Row:
    return {
        "ours": found["ours"].per(items),
        "libraries": found["libraries"].per(items),
        "speed_up": ratio(found["libraries"], found["ours"]),
        "ours_gb": found["ours"].peak_gb,
        "libraries_gb": found["libraries"].peak_gb,
    }


def _shares(context: Context, found: dict[str, Timing], items: int, flops: int) -> Row:
    shares = {f"{way}_share": _share(context, timing, items, flops) for way, timing in found.items()}
    return {"flops_per_image": flops, **shares}


def _share(context: Context, timing: Timing, items: int, flops: int) -> float:
    """Per cent of the measured matrix peak."""
    return float(100 * flops / timing.per(items)["median"] / context.peak)


def _forward(context: Context, policy: PipelinePolicy, batch: int) -> Callable[[], object]:
    """A velocity without gradients."""
    given = context.inputs(policy, batch)

    def work() -> None:
        with torch.no_grad():
            policy.velocity(*given)

    return work


def _backward(context: Context, policy: PipelinePolicy, batch: int) -> Callable[[], object]:
    """A velocity and the gradients of the LoRA; they replace those of the call before."""
    given = context.inputs(policy, batch)
    weights = list(policy.trainable().values())

    def work() -> None:
        for weight in weights:
            weight.grad = None
        torch.autograd.backward(policy.velocity(*given).square().mean())

    return work


def _flops(policy: PipelinePolicy, work: Callable[[], object]) -> int:
    """Operations of the work as diffusers and peft compute it, attention by torch's own kernels, which are counted."""

    def count() -> int:
        with libraries_own(), _countable_attention(policy._transformer), flop_counter() as counter:
            work()
        return int(counter.get_total_flops())

    return of_all_blocks(policy._transformer, count)


@contextmanager
def _countable_attention(transformer: nn.Module) -> Iterator[None]:
    """Attention by torch, but not by its choice: cuDNN's backward pass fails on some cards."""
    every: list[Any] = [getattr(module, "processor", None) for module in transformer.modules()]
    found = [processor for processor in every if hasattr(processor, "_attention_backend")]
    own = [processor._attention_backend for processor in found]
    try:
        for processor in found:
            processor._attention_backend = None
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
    finally:
        for processor, backend in zip(found, own, strict=True):
            processor._attention_backend = backend


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _rank(config: PolicyConfig) -> int:
    assert config.lora is not None
    return config.lora.rank
