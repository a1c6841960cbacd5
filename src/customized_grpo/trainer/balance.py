"""Role weights that follow from what training has gained so far: `method.weighting` constrained or adaptive."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from customized_grpo.config import MethodConfig
from customized_grpo.method import Control, dual_ascent, hypervolume_weights, lagrangian_weights
from customized_grpo.protocols import ROLES
from customized_grpo.trainer.callbacks import TrainerCallback


class Balance(TrainerCallback):
    """Chooses the two roles' weights anew in each iteration, and stores what it has seen in checkpoints."""

    def __init__(self, method: MethodConfig) -> None:
        self._constrained = torch.tensor([role in method.keep for role in ROLES])
        self._bounds = torch.tensor([method.keep.get(role, 0.0) for role in ROLES], dtype=torch.float64)
        # Training begins at a gain of 0 with equal weights: a multiplier of 1.
        self._control = Control(self._bounds.clone(), self._constrained.double())
        self._next = self._control

    def weight(
        self, method: MethodConfig, measured: tuple[Tensor, Tensor] | None, spreads: Tensor
    ) -> tuple[MethodConfig, dict[str, float]]:
        """Return the settings of this iteration, with static weights, and their metrics.

        `measured` are the gains and the untuned model's means, (2,) each; `spreads` (2,) are standard deviations in a
        group of each role's total.
        """
        unknown = torch.zeros(2).double(), torch.ones(2).double()
        gains, untuned = unknown if measured is None else measured
        metrics = {f"gain/{role}": float(gain) for role, gain in zip(ROLES, gains, strict=True)}
        if method.weighting == "constrained":
            multipliers, self._next = dual_ascent(self._bounds - gains, self._control, method.pid, 0.0)
            weights = lagrangian_weights(multipliers, self._constrained)
            kept = {role: float(one) for role, one in zip(ROLES, multipliers, strict=True) if role in method.keep}
            metrics |= {f"multiplier/{role}": value for role, value in kept.items()}
        else:
            weights = hypervolume_weights(gains, spreads.double() / untuned.abs().clamp(min=1e-8))
        chosen = {f"{role}_weight": float(weight) for role, weight in zip(ROLES, weights, strict=True)}
        metrics |= {f"weight/{role}": chosen[f"{role}_weight"] for role in ROLES}
        return method.model_copy(update={"weighting": "static", "keep": {}, **chosen}), metrics

    def on_step_end(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        """Take over the iteration's state; an iteration that is interrupted leaves the earlier one."""
        for tensor, value in zip(self._control, self._next, strict=True):
            tensor.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return violations and integrals, by their names in a checkpoint."""
        violation, integral = self._control
        return {"balance.violation": violation, "balance.integral": integral}
