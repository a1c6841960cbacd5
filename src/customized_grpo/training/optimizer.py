"""From losses to moved weights: backward passes, gradients summed over processes, a step of AdamW."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from customized_grpo.config import TrainConfig
from customized_grpo.sharding import is_sharded, local, whole
from customized_grpo.training.processes import ALONE, Processes

_LOG = logging.getLogger(__name__)


class Optimizer(Protocol):
    """Moves weights by the gradients of all processes."""

    @property
    def together(self) -> bool:
        """Whether each process keeps a part alone: all make as many backward passes, and all ask for the state."""

    def clear(self) -> None:
        """Forget the gradients."""

    def backward(self, loss: Tensor) -> None:
        """Add this process's gradients of a loss, of no dimension, to those that are there."""

    def step(self) -> float:
        """Sum the gradients over processes, clip them, move the weights, forget the gradients. A collective.

        Returns the sum's norm before clipping. Where that is not finite nothing is moved.
        """

    def set_rate(self, rate: float) -> None: ...

    def awaited_bytes(self) -> int:
        """What the next step will need to keep and has not yet."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's AdamW has it, a tensor of each weight's own shape. A collective where kept together."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state, and from the weights as they are now."""


class WholeOptimizer:
    """Each process has all gradients and takes the whole step, or of sharded weights (FSDP2) its shards'.

    Args:
        optimizer: of all `weights`.
        weights: what it moves.
        max_gradient_norm: to which their gradient's norm is clipped.
        processes: those whose gradients are summed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        max_gradient_norm: float,
        processes: Processes = ALONE,
    ) -> None:
        self._optimizer, self._weights = optimizer, list(weights)
        self._max_norm, self._processes = max_gradient_norm, processes

    @property
    def together(self) -> bool:
        return any(map(is_sharded, self._weights))

    def clear(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def step(self) -> float:
        self._processes.sum_gradients(self._weights)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._weights, self._max_norm)))
        if math.isfinite(norm):
            self._optimizer.step()
        self.clear()
        return norm

    def set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def awaited_bytes(self) -> int:
        # Adam's two averages come with the first step.
        return 0 if self._optimizer.state else 2 * sum(local(weight).nbytes for weight in self._weights)

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


def adamw(weights: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """torch's AdamW as a run's settings have it."""
    return torch.optim.AdamW(weights, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def build_optimizer(weights: Sequence[nn.Parameter], config: TrainConfig, processes: Processes) -> Optimizer:
    """The optimiser that the launcher asks for: DeepSpeed's ZeRO, or each process its own whole one."""
    if processes.zero is None:
        coarse = {str(weight.dtype).removeprefix("torch.") for weight in weights if weight.dtype.itemsize < 4}
        if coarse:
            _LOG.warning(
                "policy.dtype: all weights are trained in %s, where most steps of a small rate are lost to rounding; "
                "set policy.dtype=float32, or tune a LoRA, whose own weights are float32",
                " and ".join(sorted(coarse)),
            )
        return WholeOptimizer(adamw(weights, config), weights, config.max_gradient_norm, processes)
    from customized_grpo.training.zero import ZeroOptimizer

    return ZeroOptimizer(adamw(weights, config), weights, config.max_gradient_norm, processes.zero, processes.count)
