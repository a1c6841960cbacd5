"""From losses to moved weights: backward passes, gradients summed over processes, a step of AdamW."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from customized_grpo.config import TrainConfig
from customized_grpo.method import project_conflicts
from customized_grpo.policies.sharding import is_sharded, local, whole
from customized_grpo.trainer.processes import ALONE, Processes

_LOG = logging.getLogger(__name__)


class Optimizer(Protocol):
    """Moves weights by the gradients of all processes."""

    @property
    def together(self) -> bool:
        """Whether each process keeps a part alone: all make as many backward passes, and all ask for the state."""

    @property
    def objectives(self) -> int:
        """Of how many losses a backward pass is: 1, or 2 whose gradients are told apart."""

    def clear(self) -> None:
        """Forget the gradients."""

    def backward(self, *losses: Tensor) -> None:
        """Add this process's gradients of as many losses as `objectives`, of no dimension, to those that are there."""

    def step(self) -> float:
        """Sum the gradients over processes, clip them, move the weights, forget the gradients. A collective.

        Of two objectives, what opposes the other's gradient is taken out of each before they are added up (PCGrad).
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
        objectives: 1, or 2; of shards 1 alone.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        max_gradient_norm: float,
        processes: Processes = ALONE,
        objectives: int = 1,
    ) -> None:
        self._optimizer, self._weights = optimizer, list(weights)
        self._max_norm, self._processes = max_gradient_norm, processes
        self.objectives = objectives
        self._apart: list[list[Tensor | None]] = []  # the gradients of each of two objectives, by weights
        self.clear()

    @property
    def together(self) -> bool:
        return any(map(is_sharded, self._weights))

    def clear(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._apart = [[None] * len(self._weights) for _ in range(self.objectives)]

    def backward(self, *losses: Tensor) -> None:
        if self.objectives == 1:
            torch.autograd.backward(losses)
            return
        for k, loss in enumerate(losses):
            self._set_gradients(self._apart[k])
            torch.autograd.backward(loss, retain_graph=k + 1 < len(losses))
            self._apart[k] = [weight.grad for weight in self._weights]

    def step(self) -> float:
        if self.objectives == 1:
            self._processes.sum_gradients(self._weights)
        else:
            self._set_gradients(project_conflicts(*map(self._summed, self._apart)))
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._weights, self._max_norm)))
        if math.isfinite(norm):
            self._optimizer.step()
        self.clear()
        return norm

    def _set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient

    def _summed(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """One objective's gradients of all processes. A collective."""
        self._set_gradients(gradients)
        self._processes.sum_gradients(self._weights)
        return [weight.grad for weight in self._weights if weight.grad is not None]

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
    """torch's AdamW as a run's settings have it; on CUDA the fused one, which needs no memory for temporary tensors."""
    fused = {"fused": True} if all(weight.device.type == "cuda" for weight in weights) else {}
    return torch.optim.AdamW(
        weights, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, **fused
    )


def build_optimizer(
    weights: Sequence[nn.Parameter], config: TrainConfig, processes: Processes, objectives: int = 1
) -> Optimizer:
    """The optimiser that the launcher asks for: DeepSpeed's ZeRO, or each process its own whole one.

    Two `objectives` need whole gradients, of which `Processes.check` makes sure.
    """
    if processes.zero is None:
        coarse = {str(weight.dtype).removeprefix("torch.") for weight in weights if weight.dtype.itemsize < 4}
        if coarse:
            _LOG.warning(
                "policy.dtype: all weights are trained in %s, where most steps of a small rate are lost to rounding; "
                "set policy.dtype=float32, or tune a LoRA, whose own weights are float32",
                " and ".join(sorted(coarse)),
            )
        return WholeOptimizer(adamw(weights, config), weights, config.max_gradient_norm, processes, objectives)
    from customized_grpo.trainer.zero import ZeroOptimizer

    return ZeroOptimizer(adamw(weights, config), weights, config.max_gradient_norm, processes.zero, processes.count)
