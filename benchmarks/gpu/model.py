"""Sections on the models alone: velocities, forward and backward passes, log-ratios, VAE, reward models, optimizer."""

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

from benchmarks.gpu.context import ROOT, Context
from benchmarks.gpu.timing import Row, Timing, Work, alternate, paired, reset_peak, synchronise
from benchmarks.iteration.flops import flop_counter
from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.method import SAMPLERS, flow_sigmas
from customized_grpo.planning import make_plan
from customized_grpo.planning.shapes import of_all_blocks
from customized_grpo.policies.backends import available_backends
from customized_grpo.policies.hooks import ATTENTION
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.rewards import build_reward

#: (rank, default layers instead of attention, checkpointing, batch sizes) of the section `training`.
_TRAINING = (
    (16, False, True, (4,)),
    (128, False, False, (1,)),
    (128, False, True, (4, 8)),  # batch 1: the section `launch`
    (512, True, True, (1, 4)),
)
_STEPS, _SHIFT = 25, 3.0
_ETAS = {"dance": 0.4, "flow": 0.7}
#: Parts of the plan's training phase that a forward and backward pass has; the others are the trainer's.
_MODEL_PARTS = ("transformer", "LoRA", "text encoders", "VAE", "gradients", "activations")


def peak(context: Context) -> Iterator[Row]:
    """The fastest of some square products, which shares of the peak refer to."""
    yield {"precision": "bfloat16", "tflops": context.peak / 1e12}


def velocity(context: Context) -> Iterator[Row]:
    """LoRA of rank 16 on attention. Shares of the peak count the operations of diffusers' and peft's own computation:
    matrix products, convolutions and attention.
    """
    policy = context.policy()
    flops = model_flops(policy, _forward(context, policy, 1))

    def measure(batch: int) -> Row:
        work = _forward(context, policy, batch)
        row, timing = paired(work, context.device, batch, repeats=3 if batch < 8 else 2)
        return row | {"flops_per_image": flops, "percent_of_peak": _share(context, timing, batch, flops)}

    for batch in context.sizes(1, 2, 4, 8, 12):
        yield context.attempt({"batch": batch}, partial(measure, batch))


def training(context: Context) -> Iterator[Row]:
    """Operations are those of diffusers + peft with what gradient checkpointing computes again, and in the next column
    without. The plan is the sum of the parts of `cgrpo plan` that are there: weights, LoRA, gradients, activations.
    """
    for rank, all_layers, checkpointing, batches in _TRAINING[1::2] if context.tiny else _TRAINING:
        policy = context.policy(rank, None if all_layers else ATTENTION, gradient_checkpointing=checkpointing)
        assert policy.config.lora is not None
        flops = useful = model_flops(policy, _backward(context, policy, 1))
        if checkpointing:  # which computes the forward pass again
            useful -= model_flops(policy, _forward(context, policy, 1))
        settings = {
            "rank": policy.config.lora.rank,
            "layers": "default" if all_layers else "attention",
            "checkpointing": checkpointing,
        }
        for batch in context.sizes(*batches):
            measure = partial(_training, context, policy, batch, flops, useful)
            yield context.attempt({**settings, "batch": batch}, measure)


def _training(context: Context, policy: PipelinePolicy, batch: int, flops: int, useful: int) -> Row:
    repeats = 3 if batch < 4 else 2 if batch < 8 else 1
    row, timing = paired(_backward(context, policy, batch), context.device, batch, repeats=repeats)
    train = Config().train.model_copy(update={"batch_size": batch})
    plan = make_plan(Config(policy=policy.config).model_copy(update={"train": train})).device["training"]
    planned = sum(plan.get(part, 0) for part in _MODEL_PARTS)
    return row | {
        "flops_per_image": flops,
        "percent_of_peak": _share(context, timing, batch, flops),
        "percent_without_recomputation": _share(context, timing, batch, useful),
        "planned_gb": planned / 1e9,
        "plan_difference_percent": difference(planned, timing.peak_bytes),
    }


def launch(context: Context) -> Iterator[Row]:
    """Rank 128, checkpointing, batch 1: small work, whose time is that of the CPU which launches it."""
    policy = context.policy(128)
    measure = partial(paired, _backward(context, policy, 1), context.device, 1)
    yield {"garbage_collector": "on", **measure(repeats=2 if context.tiny else 5)[0]}
    gc.collect()
    gc.disable()
    try:
        yield {"garbage_collector": "off", **measure(repeats=2 if context.tiny else 3)[0]}
    finally:
        gc.enable()


def high_resolution(context: Context) -> Iterator[Row]:
    """One reference of the same size, batch 1."""
    side = 2 * context.side
    policy = context.policy(height=side, width=side, reference_sizes=[(side, side)], gradient_checkpointing=False)
    yield {"what": "velocity", "side": side, **paired(_forward(context, policy, 1), context.device, 1, repeats=2)[0]}
    latents = context.inputs(policy, 1)[0]
    found = alternate({"": lambda: policy.decode(latents)}, context.device, repeats=2)
    yield {"what": "VAE decoding", "side": side, "ours_s_per_image": found[""].per()}


def by_attention(context: Context) -> Iterator[Row]:
    """LoRA of rank 16 on attention, checkpointing, batch 4."""
    batch = context.sizes(4)[0]

    def measure(name: str) -> Row:
        policy = context.policy(attention=name)
        work = {"velocity": _forward(context, policy, batch), "training": _backward(context, policy, batch)}
        found = alternate(work, context.device, repeats=1)
        return {f"{what}_s_per_image": timing.per(batch) for what, timing in found.items()}

    for name in available_backends(context.device):
        yield context.attempt({"attention": name}, partial(measure, name))


def compiled(context: Context) -> Iterator[Row]:
    """Batch 4, rank 16. The first call compiles the two kinds of blocks."""
    batch = context.sizes(4)[0]
    # A CPU would compile for minutes.
    with torch.compiler.set_stance("force_eager" if context.tiny else "default"):
        policy = context.policy(compile=True)
        for what, make in (("velocity", _forward), ("forward and backward", _backward)):
            work = make(context, policy, batch)
            began = time.perf_counter()
            work()
            synchronise(context.device)
            first = time.perf_counter() - began
            found = alternate({"": work}, context.device, repeats=2)
            yield {"what": what, "first_call_s": first, "s_per_image": found[""].per(batch)}


def ratios(context: Context) -> Iterator[Row]:
    """Absolute difference of log-densities of the same transitions, sampled without gradients and replayed with them in
    batches of another size, by the policy alone: the error that a trainer has to correct for.
    """
    policy = context.policy()
    sigmas = flow_sigmas(_STEPS, _SHIFT).to(context.device)
    trained = context.sizes(1, 4, 8)
    for sampled in context.sizes(4, 8, 12):
        latents, _, conditions = context.inputs(policy, sampled)
        steps = torch.linspace(0, _STEPS - 2, sampled).round().long()  # all but the last, which is deterministic
        sigma, sigma_next = sigmas[steps], sigmas[steps + 1]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(context.device)
        for layers, inside in (("ours", nullcontext), ("diffusers + peft", libraries_own)):
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
                        taken = step(first, sigma, sigma_next, noise=noise)
                        replayed = step(again, sigma, sigma_next, next_sample=taken.next_sample)
                        error = (replayed.log_density - taken.log_density).abs().double()
                        yield {
                            "sampler": name, "eta": eta, "sampled_batch": sampled, "trained_batch": size,
                            "layers": layers, "max": float(error.max()), "mean": float(error.mean()),
                        }  # fmt: skip


def decode(context: Context) -> Iterator[Row]:
    """Images of one VAE in both memory layouts."""
    policy = context.policy()
    vae = context.pipeline.vae

    def measure(batch: int) -> Row:
        latents = context.inputs(policy, batch)[0]
        timing = alternate({"": lambda: policy.decode(latents)}, context.device)[""]
        return {"s_per_image": timing.per(batch), "peak_gb": timing.peak_bytes / 1e9}

    for channels_last in (True, False):
        vae.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        for batch in context.sizes(1, 4, 12):
            yield context.attempt({"batch": batch, "channels_last": channels_last}, partial(measure, batch))


def scoring(context: Context) -> Iterator[Row]:
    """DINOv2-base and CLIP ViT-L/14 with random weights, float32, as the rewards `dino` and `clip` use them: framing of
    the images included, features of references and prompts cached.
    """
    configs = load_config(ROOT / "recipes" / "kontext-dev.yaml").rewards
    for config, random in zip(configs, context.reward_configs(configs), strict=True):
        reward = build_reward(random, context.device)
        for batch in context.sizes(1, 12, 48):
            images = torch.rand(batch, 3, context.side, context.side, device=context.device)
            found = alternate({"": partial(reward, images, [context.pair] * batch)}, context.device)[""]
            yield {"model": config.path, "batch": batch, "s_per_image": found.per(batch)}


def adamw(context: Context) -> Iterator[Row]:
    """A step on a LoRA of rank 512 on the default layers, by each of torch's implementations."""
    policy = context.policy(512, None)
    weights = list(policy.trainable().values())
    million = sum(weight.numel() for weight in weights) / 1e6

    def measure(implementation: str) -> Row:
        context.tidy()
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        fused = implementation == "fused"
        optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=fused, foreach=not fused)
        optimizer.step()  # makes its state
        reset_peak(context.device)
        held = torch.cuda.memory_allocated(context.device) if context.device.type == "cuda" else 0
        timing = alternate({"": optimizer.step}, context.device, warm=0)[""]
        return {"s_per_step": timing.per(), "extra_peak_gb": (timing.peak_bytes - held) / 1e9}

    for implementation in ("foreach", "fused"):
        settings = {"implementation": implementation, "million_weights": million}
        yield context.attempt(settings, partial(measure, implementation))


def difference(planned: float, measured: float) -> float | None:
    """Return by how many percent the plan exceeds the measured memory; None on a CPU, where it is 0."""
    return 100 * (planned - measured) / measured if measured else None


def model_flops(policy: PipelinePolicy, work: Work) -> int:
    """Count the operations of the work by diffusers' and peft's layers and torch's own attention kernels."""

    def count() -> tuple[int]:
        with libraries_own(), _countable_attention(policy._transformer), flop_counter() as counter:
            work()
        return (int(counter.get_total_flops()),)

    return of_all_blocks(policy._transformer, count)[0]


def _share(context: Context, timing: Timing, items: int, flops: int) -> float:
    """Return the percentage of the measured matrix peak."""
    return float(100 * flops / timing.per(items)["median"] / context.peak)


def _forward(context: Context, policy: PipelinePolicy, batch: int) -> Callable[[], None]:
    """Return the work of a velocity without gradients."""
    given = context.inputs(policy, batch)

    def work() -> None:
        with torch.no_grad():
            policy.velocity(*given)

    return work


def _backward(context: Context, policy: PipelinePolicy, batch: int) -> Callable[[], None]:
    """Return the work of a velocity and the gradients of the LoRA, which replace those of the previous call."""
    given = context.inputs(policy, batch)
    weights = list(policy.trainable().values())

    def work() -> None:
        for weight in weights:
            weight.grad = None
        torch.autograd.backward(policy.velocity(*given).square().mean())

    return work


@contextmanager
def _countable_attention(transformer: nn.Module) -> Iterator[None]:
    """Use torch's attention kernels other than cuDNN, whose backward pass fails on some cards."""
    processors: list[Any] = [getattr(module, "processor", None) for module in transformer.modules()]
    backends = {one: one._attention_backend for one in processors if hasattr(one, "_attention_backend")}
    try:
        for processor in backends:
            processor._attention_backend = None
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
    finally:
        for processor, backend in backends.items():
            processor._attention_backend = backend
