"""Role weights that follow from what training has gained so far: `method.weighting` constrained or adaptive."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from customized_grpo.config import MethodConfig
from customized_grpo.method import Control, dual_ascent, hypervolume_weights, lagrangian_weights
from customized_grpo.protocols import ROLES
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.callbacks import TrainerCallback

_SMOOTHING = 0.8  # share of the earlier iterations in gains, which a few images estimate


def role_totals(terms: Sequence[RewardTerm], scores: Mapping[str, Tensor]) -> Tensor:
    """Return each role's weighted sum of rewards, (2, n), from scores (n,) by reward name; NaN where one is missing."""
    return torch.stack(
        [
            sum((t.weight * scores[t.name] for t in terms if t.role == role and t.weight > 0), start=torch.zeros(()))
            for role in ROLES
        ]
    ).double()


def relative_gains(own: Tensor, base: Tensor, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the relative gain of each role over the untuned model, (2,), and the untuned model's mean, (2,).

    `own` and `base` (2, n) are totals of this process's images under both models, NaN where missing; `reduce` sums over
    processes. None if no image has all scores.
    """
    valid = (own.isfinite() & base.isfinite()).all(0)
    sums = reduce(torch.cat([own[:, valid].sum(1), base[:, valid].sum(1), valid.sum()[None].double()]))
    if not float(sums[-1]):
        return None
    tuned, untuned = sums[:2] / sums[-1], sums[2:4] / sums[-1]
    return (tuned - untuned) / untuned.abs().clamp(min=1e-8), untuned


class Balance(TrainerCallback):
    """Chooses the two roles' weights anew in each iteration, and stores what it has seen in checkpoints."""

    def __init__(self, method: MethodConfig) -> None:
        self._constrained = torch.tensor([role in method.keep for role in ROLES])
        self._bounds = torch.tensor([method.keep.get(role, 0.0) for role in ROLES], dtype=torch.float64)
        self._gains = torch.zeros(2, dtype=torch.float64)
        # Training begins at a gain of 0 with equal weights: a multiplier of 1.
        self._control = Control(self._bounds.clone(), self._constrained.double())
        self._next = self._gains, self._control

    def weight(
        self, method: MethodConfig, measured: tuple[Tensor, Tensor] | None, spreads: Tensor
    ) -> tuple[MethodConfig, dict[str, float]]:
        """Return the settings of this iteration, with static weights, and their metrics.

        `measured` is from `relative_gains`; `spreads` (2,) are standard deviations in a group of each role's total.
        """
        gains, control = self._gains, self._control
        if measured is not None:
            gains = _SMOOTHING * gains + (1 - _SMOOTHING) * measured[0]
        metrics = {f"gain/{role}": float(gain) for role, gain in zip(ROLES, gains, strict=True)}
        if method.weighting == "constrained":
            violation = self._bounds - (gains if measured is None else measured[0])
            multipliers, control = dual_ascent(violation, control, method.pid, _SMOOTHING)
            weights = lagrangian_weights(multipliers, self._constrained)
            kept = {role: float(one) for role, one in zip(ROLES, multipliers, strict=True) if role in method.keep}
            metrics |= {f"multiplier/{role}": value for role, value in kept.items()}
        else:
            base = torch.ones(2) if measured is None else measured[1].abs().clamp(min=1e-8)
            weights = hypervolume_weights(gains, spreads.double() / base)
        self._next = gains, control
        chosen = {f"{role}_weight": float(weight) for role, weight in zip(ROLES, weights, strict=True)}
        metrics |= {f"weight/{role}": chosen[f"{role}_weight"] for role in ROLES}
        return method.model_copy(update={"weighting": "static", "keep": {}, **chosen}), metrics

    def on_step_end(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        """Take over the iteration's state; an iteration that is interrupted leaves the earlier one."""
        gains, control = self._next
        for tensor, value in zip(self.state().values(), (gains, *control), strict=True):
            tensor.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return smoothed gains, violations and integrals, by their names in a checkpoint."""
        violation, integral = self._control
        return {"balance.gains": self._gains, "balance.violation": violation, "balance.integral": integral}
