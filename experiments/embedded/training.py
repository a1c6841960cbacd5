"""Arguments, the training loop and learning rate schedules that the training scripts share."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
    made.add_argument(
        "--precision", choices=("bfloat16", "float32"), help="of autocast; default: bfloat16 where the hardware has it"
    )
    for name, value in defaults.items():
        made.add_argument(f"--{name}", type=int if isinstance(value, int) else float, default=value)
    return made


def autocast(options: argparse.Namespace) -> torch.autocast:
    """Return the autocast that `--precision` asks for. A CPU without bfloat16 instructions is many times slower in it."""
    fast = options.device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    wanted = options.precision or ("bfloat16" if fast else "float32")
    return torch.autocast(options.device.type, torch.bfloat16, enabled=wanted == "bfloat16")


def one_cycle(warm: float) -> Callable[[float], float]:
    """Return a schedule of a linear warm-up over a share `warm` of the steps and a cosine decay to 0."""
    return lambda done: done / warm if done < warm else 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))


class MatrixMuon(torch.optim.Optimizer):
    """Muon for matrices and for kernels of convolutions, each of these as a matrix of one row per output channel.

    As torch.optim.Muon with Nesterov momentum and `match_rms_adamw`, but in float32, with matrices of the same shape
    orthogonalised together: on a CPU without bfloat16 instructions torch's own takes longer than the model's step.
    """

    def __init__(self, weights: Sequence[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(weights, {"lr": 1e-3, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"]).flatten(1)
                by_shape.setdefault((len(update), update.shape[1]), []).append((weight, update))
            for shape, found in by_shape.items():
                scale = 0.2 * max(shape) ** 0.5
                for (weight, _), update in zip(found, orthogonal(torch.stack([u for _, u in found])), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update.view_as(weight), alpha=group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (N, rows, columns) with all singular values near 1, by five quintic Newton-Schulz iterations.

    Coefficients of Keller Jordan's Muon, which torch.optim.Muon also has.
    """
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    made = wide / wide.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(5):
        gram = made @ made.mT
        made = torch.baddbmm(made, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), made, beta=3.4445)
    return made if wide is matrices else made.mT


def muon_and_adamw(
    model: nn.Module, inner: Callable[[str, nn.Parameter], bool], decay: float
) -> dict[str, torch.optim.Optimizer]:
    """Return Muon for the weights that `inner` chooses by name and weight, and AdamW with a decay for all other ones."""
    muon, adamw = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (muon if inner(name, weight) else adamw).append(weight)
    return {
        "muon": MatrixMuon(muon),
        "adamw": torch.optim.AdamW(adamw, betas=(0.9, 0.99), weight_decay=decay),
    }


def train(
    weights: Sequence[nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    losses: Callable[[], Losses],
    schedule: Callable[[float], float],
    options: argparse.Namespace,
    *,
    parts: Mapping[str, Any] | None = None,
    after: Callable[[int], object] = lambda done: None,
    save_every: int = 250,
    micro_batches: int = 1,
) -> None:
    """Train in the precision that was asked for, with gradients clipped to a norm of 1.

    Every step has its own seed, so a resumed training sees the same batches.

    Args:
        weights: All trained weights.
        optimizers: Optimizers of the weights; their learning rate is set for every step.
        losses: Compute the losses of a batch, or of one of its `micro_batches`.
        schedule: Map the share of steps done to a factor of the learning rate.
        options: Arguments `steps`, `rate`, `seed`, `device`, `precision` and `out`.
        parts: Modules and optimizers to store in `out/state.pt` and to go on from, by name; None: not stored.
        after: Called after every step with the number of steps done.
        save_every: Steps between two stored states.
        micro_batches: Number of parts of a batch, whose gradients are averaged.

    Raises:
        ArithmeticError: A gradient is not finite; the message names the operation that made it so, if it can be found.
    """
    began = time.monotonic()
    state = options.out / "state.pt"
    first = _restore(state, parts) if parts is not None and state.exists() else 0

    def gradients(step: int) -> Losses:
        torch.manual_seed(options.seed * 1_000_003 + step)
        # A CPU's flash attention has a slow backward pass at this size.
        with sdpa_kernel(SDPBackend.MATH) if options.device.type == "cpu" else nullcontext():
            for _ in range(micro_batches):
                with autocast(options):
                    found = losses()
                (found["loss"] / micro_batches).backward()
        return found

    for step in range(first, options.steps):
        found = gradients(step)
        if not torch.nn.utils.clip_grad_norm_(weights, 1.0).isfinite():
            for optimizer in optimizers:
                optimizer.zero_grad()
            with torch.compiler.set_stance("force_eager"), torch.autograd.detect_anomaly():
                gradients(step)  # the same batch; raises where the first NaN arises
            raise ArithmeticError(f"step {step}: a gradient is not finite, but only when compiled: {found}")
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * schedule((step + 1) / options.steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 25 == 0 or step + 1 == options.steps:
            values = " ".join(f"{name} {float(value.detach()):.4f}" for name, value in found.items())
            print(f"step {step} {values} {time.monotonic() - began:.0f} s", flush=True)
        after(step + 1)
        if parts is not None and ((step + 1) % save_every == 0 or step + 1 == options.steps):
            _store(state, parts, step + 1)


@torch.no_grad()
def load_leading(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights of a module that may have fewer channels: they become the first ones, the others stay as they are."""
    for name, own in module.state_dict().items():
        own[tuple(slice(size) for size in weights[name].shape)] = weights[name]


def _store(state: Path, parts: Mapping[str, Any], done: int) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    temporary = state.with_suffix(".tmp")
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": done}, temporary)
    temporary.rename(state)


def _restore(state: Path, parts: Mapping[str, Any]) -> int:
    saved = torch.load(state, weights_only=True, map_location="cpu")
    done: int = saved.pop("step")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return done
