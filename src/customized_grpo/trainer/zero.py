"""ZeRO stages 1 and 2 (arXiv 1910.02054) by DeepSpeed: each process has a part of AdamW's state.

DeepSpeed's engine gets the trained weights only, without a model. Its checkpoints, which are pickles, are not used; its
state is read and written weight by weight with its public accessors.
"""

from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_fp32_param, safe_set_full_optimizer_state
from torch import Tensor, nn

from customized_grpo.trainer.optimizer import Optimizer
from customized_grpo.trainer.processes import Processes

_STEP = "step"


class ZeroOptimizer(Optimizer):
    """An optimizer of one objective whose state is sharded over processes as the launcher's file says."""

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        weights: Sequence[nn.Parameter],
        max_gradient_norm: float,
        processes: Processes,
    ) -> None:
        super().__init__(optimizer, weights, max_gradient_norm, processes)
        self.together = True
        #: Parameter groups for checkpoints; DeepSpeed replaces the weights in the optimizer's by flat parts.
        self._groups = optimizer.state_dict()["param_groups"]
        self._engine, *_ = deepspeed.initialize(
            model=nn.ParameterList(self._weights),
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_clipping": max_gradient_norm,
                "managed_gradient_accumulation": False,  # a step is where `step` is called
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": dict(processes.zero or {}),
            },
        )

    def clear(self) -> None:
        """Clear the gradients."""
        self._engine.optimizer.zero_grad()

    def backward(self, *losses: Tensor) -> None:
        """Add this process's gradients of the loss; there is one objective."""
        (loss,) = losses
        self._engine.backward(loss * self._processes.count)  # DeepSpeed averages over processes

    def step(self) -> float:
        """Clip the gradients of all processes and update the weights; return the norm before. A collective."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        super().set_rate(rate)
        for group in self._groups:
            group["lr"] = rate

    def awaited_bytes(self) -> int:
        """Return the bytes of this process's share of the state that the next step allocates."""
        return super().awaited_bytes() // self._processes.count

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in the form of torch's AdamW. A collective."""
        steps = [state[_STEP] for state in self._optimizer.state.values()]
        state: dict[int, dict[str, Tensor]] = {}
        for index, weight in enumerate(self._weights if steps else ()):
            moments = {name: safe_get_full_optimizer_state(weight, name) for name in ("exp_avg", "exp_avg_sq")}
            state[index] = {_STEP: steps[0].detach().cpu().clone(), **moments}
        return {"state": state, "param_groups": self._groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state after the weights were loaded."""
        for weight in self._weights:
            safe_set_full_fp32_param(weight, weight.detach().float())
        if state["state"] and not self._optimizer.state:
            self._allocate()
        for index, weight in enumerate(self._weights):
            for name, value in state["state"].get(index, {}).items():
                if name != _STEP:
                    safe_set_full_optimizer_state(weight, value.to(weight.device), name)
        for part in self._optimizer.state.values():
            part[_STEP].copy_(state["state"][0][_STEP])

    def _allocate(self) -> None:
        """Make DeepSpeed allocate its state by a step with learning rate 0 and gradients of zeros."""
        rate = self._groups[0]["lr"]
        self.set_rate(0.0)
        self.backward(torch.stack([(weight * 0.0).sum() for weight in self._weights]).sum())
        self.step()
        self.set_rate(rate)
