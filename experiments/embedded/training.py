"""Arguments, the training loop and learning rate schedules that the training scripts share."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Losses = dict[str, Tensor]
"""Values to print by name; `loss` is trained on."""


def parser(doc: str | None, **defaults: float | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every training script; `defaults` are numbers such as `steps`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder that render.py wrote")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    for name, value in defaults.items():
        made.add_argument(f"--{name}", type=int if isinstance(value, int) else float, default=value)
    return made


def one_cycle(warm: float) -> Callable[[float], float]:
    """Return a schedule of a linear warm-up over a share `warm` of the steps and a cosine decay to 0."""
    return lambda done: done / warm if done < warm else 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))


def train(
    weights: Sequence[nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    losses: Callable[[], Losses],
    schedule: Callable[[float], float],
    options: argparse.Namespace,
    *,
    first: int = 0,
    after: Callable[[int], object] = lambda done: None,
) -> None:
    """Train in bfloat16 autocast, with gradients clipped to a norm of 1.

    Args:
        weights: All trained weights.
        optimizers: Optimizers of the weights; their learning rate is set for every step.
        losses: Compute the losses of a batch.
        schedule: Map the share of steps done to a factor of the learning rate.
        options: Arguments `steps`, `rate`, `seed` and `device`.
        first: Step to begin with. Every step has its own seed, so a resumed training sees the same batches.
        after: Called after every step with the number of steps done.
    """
    began = time.monotonic()
    for step in range(first, options.steps):
        torch.manual_seed(options.seed * 1_000_003 + step)
        # A CPU's flash attention has a slow backward pass at this size.
        with sdpa_kernel(SDPBackend.MATH) if options.device.type == "cpu" else nullcontext():
            with torch.autocast(options.device.type, torch.bfloat16):
                found = losses()
            found["loss"].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * schedule((step + 1) / options.steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 25 == 0 or step + 1 == options.steps:
            values = " ".join(f"{name} {float(value.detach()):.4f}" for name, value in found.items())
            print(f"step {step} {values} {time.monotonic() - began:.0f} s", flush=True)
        after(step + 1)
