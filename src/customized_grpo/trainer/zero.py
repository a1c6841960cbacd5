"""ZeRO of stages 1 and 2 (arXiv 1910.02054) by DeepSpeed: AdamW's averages in parts, one on each process.

DeepSpeed's engine is given the trained weights alone, and no model: the policy calls its own transformer, a LoRA keeps
its precision whatever the model's is, and FSDP2 does what stage 3 would. DeepSpeed's checkpoints, which are pickles,
are never written nor read; its state goes in and out by its public accessors, weight by weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_fp32_param, safe_set_full_optimizer_state
from torch import Tensor, nn

_STEP = "step"


class ZeroOptimizer:
    """A `training.optimizer.Optimizer` of which each process keeps a part.

    Args:
        optimizer: torch's AdamW of all `weights`, which DeepSpeed makes one of this process's part.
        weights: what it moves; whole on every process.
        max_gradient_norm: to which their gradient's norm is clipped.
        zero: DeepSpeed's section `zero_optimization`.
        processes: how many there are.
    """

    together = True
    objectives = 1

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        weights: Sequence[nn.Parameter],
        max_gradient_norm: float,
        zero: Mapping[str, Any],
        processes: int,
    ) -> None:
        self._adam, self._weights, self._processes = optimizer, list(weights), processes
        #: Its groups as a checkpoint has them: DeepSpeed puts flat parts in the place of the weights.
        self._groups = optimizer.state_dict()["param_groups"]
        self._engine, *_ = deepspeed.initialize(
            model=nn.ParameterList(self._weights),
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_clipping": max_gradient_norm,
                "managed_gradient_accumulation": False,  # a step is where we take it
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": dict(zero),
            },
        )

    def clear(self) -> None:
        self._engine.optimizer.zero_grad()

    def backward(self, *losses: Tensor) -> None:
        (loss,) = losses
        self._engine.backward(loss * self._processes)  # of which it takes the mean over processes

    def step(self) -> float:
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def set_rate(self, rate: float) -> None:
        for group in (*self._adam.param_groups, *self._groups):
            group["lr"] = rate

    def awaited_bytes(self) -> int:
        return 0 if self._adam.state else 2 * sum(weight.nbytes for weight in self._weights) // self._processes

    def state_dict(self) -> dict[str, Any]:
        steps = [state[_STEP] for state in self._adam.state.values()]
        state: dict[int, dict[str, Tensor]] = {}
        for index, weight in enumerate(self._weights if steps else ()):
            averages = {name: safe_get_full_optimizer_state(weight, name) for name in ("exp_avg", "exp_avg_sq")}
            state[index] = {_STEP: steps[0].detach().cpu().clone(), **averages}
        return {"state": state, "param_groups": self._groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for weight in self._weights:
            safe_set_full_fp32_param(weight, weight.detach().float())
        if state["state"] and not self._adam.state:
            self._make_averages()
        for index, weight in enumerate(self._weights):
            for name, value in state["state"].get(index, {}).items():
                if name != _STEP:
                    safe_set_full_optimizer_state(weight, value.to(weight.device), name)
        for part in self._adam.state.values():
            part[_STEP].copy_(state["state"][0][_STEP])

    def _make_averages(self) -> None:
        """DeepSpeed has none before its first step: one of no rate, along a gradient of zeros, moves nothing."""
        rate = self._groups[0]["lr"]
        self.set_rate(0.0)
        self.backward(torch.stack([(weight * 0.0).sum() for weight in self._weights]).sum())
        self.step()
        self.set_rate(rate)
