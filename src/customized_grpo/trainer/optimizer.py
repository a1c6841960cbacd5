"""Optimizer steps: backward passes, gradients summed over processes, AdamW."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from customized_grpo.config import TrainConfig
from customized_grpo.method import project_conflicts
from customized_grpo.policies.sharding import any_sharded, local, whole
from customized_grpo.trainer.processes import ALONE, Processes

_LOG = logging.getLogger(__name__)


class Optimizer:
    """Update weights by the gradients of all processes; with sharded weights (FSDP2), each process its shards.

    A backward pass has one loss, or two `objectives` whose gradients are stored separately (gradient surgery).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        max_gradient_norm: float,
        processes: Processes = ALONE,
        objectives: int = 1,
    ) -> None:
        self._optimizer, self._weights, self.objectives = optimizer, list(weights), objectives
        self._max_norm, self._processes = max_gradient_norm, processes
        self._apart: list[list[Tensor | None]] = []  # gradients of two objectives
        #: Whether weights or state are sharded: all processes make as many backward passes, and save together.
        self.together = any_sharded(self._weights)

    def clear(self) -> None:
        """Clear the gradients."""
        self._optimizer.zero_grad(set_to_none=True)
        self._apart = []

    def backward(self, *losses: Tensor) -> None:
        """Add this process's gradients of one scalar loss per objective."""
        if self.objectives == 1:
            torch.autograd.backward(losses)
            return
        self._apart = self._apart or [[None] * len(self._weights) for _ in losses]
        for k, loss in enumerate(losses):
            self._set_gradients(self._apart[k])
            torch.autograd.backward(loss, retain_graph=k + 1 < len(losses))
            self._apart[k] = [weight.grad for weight in self._weights]

    def step(self) -> float:
        """Sum gradients over processes, clip them, update the weights, clear the gradients. A collective.

        With two objectives, conflicting parts of their gradients are projected out first (PCGrad). If the norm is not
        finite, the weights stay as they are. Returns the norm before clipping.
        """
        if self.objectives == 1:
            self._processes.sum_gradients(self._weights)
        else:
            apart = self._apart or [[None] * len(self._weights) for _ in range(self.objectives)]
            self._set_gradients(project_conflicts(*map(self._summed, apart)))
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._weights, self._max_norm)))
        if math.isfinite(norm):
            self._optimizer.step()
        self.clear()
        return norm

    def _set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient

    def _summed(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the sum of all processes' gradients of one objective. A collective."""
        self._set_gradients(gradients)
        self._processes.sum_gradients(self._weights)
        return [weight.grad for weight in self._weights if weight.grad is not None]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def awaited_bytes(self) -> int:
        """Return the bytes of state that the next step allocates: AdamW's two moments, at its first."""
        return 0 if self._optimizer.state else 2 * sum(local(weight).nbytes for weight in self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the form of torch's AdamW, with a tensor per weight. A collective if `together`."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state after the weights were loaded."""
        self._optimizer.load_state_dict(state)


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Return the learning rate of an iteration, counted from 0: a function of it alone, for resumed runs."""
    if iteration < config.warmup_iterations:
        return config.learning_rate * (iteration + 1) / (config.warmup_iterations + 1)
    done = (iteration - config.warmup_iterations) / (config.iterations - config.warmup_iterations)
    decay = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return config.learning_rate * decay[config.schedule]


def adamw(weights: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW as configured; fused on CUDA, which needs no memory for temporary tensors."""
    fused = {"fused": True} if all(weight.device.type == "cuda" for weight in weights) else {}
    return torch.optim.AdamW(
        weights, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, **fused
    )


def build_optimizer(
    weights: Sequence[nn.Parameter], config: TrainConfig, processes: Processes, objectives: int = 1
) -> Optimizer:
    """Return the optimizer that the launcher asks for: DeepSpeed's ZeRO, or one whole optimizer per process."""
    if processes.zero is not None:
        from customized_grpo.trainer.zero import ZeroOptimizer

        return ZeroOptimizer(adamw(weights, config), weights, config.max_gradient_norm, processes)
    coarse = {str(weight.dtype).removeprefix("torch.") for weight in weights if weight.dtype.itemsize < 4}
    if coarse:
        _LOG.warning(
            "policy.dtype: all weights are trained in %s, where most steps of a small learning rate are lost to "
            "rounding; set policy.dtype=float32, or train a LoRA, whose weights are float32",
            " and ".join(sorted(coarse)),
        )
    return Optimizer(adamw(weights, config), weights, config.max_gradient_norm, processes, objectives)
