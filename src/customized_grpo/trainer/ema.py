"""A moving average of the weights that training moves: smoother than the last ones, and what a run exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from customized_grpo.policies.exchange import undone
from customized_grpo.protocols import Policy

_PREFIX = "ema."


class MovingAverage:
    """decay * average + (1 - decay) * weights after each optimiser step, from the untrained weights on, in float32.

    Args:
        policy: whose `trainable()` is averaged.
        decay: 0 to below 1; with 0 there is no average, and nothing here does anything.
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        self._decay = decay
        self._weights = policy.trainable() if decay > 0 else {}
        self._average = {name: weight.detach().float().clone() for name, weight in self._weights.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The averages themselves, by names for a checkpoint; filling them in place is loading them."""
        return {f"{_PREFIX}{name}": average for name, average in self._average.items()}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after an optimiser step."""
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight.float(), 1 - self._decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Make the averages the policy's weights."""
        for name, weight in self._weights.items():
            weight.copy_(self._average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside it the policy has the averages for weights; afterwards its own again, bit for bit.

        Also where a signal ends either exchange half-way.
        """
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}

        @torch.no_grad()
        def give_back() -> None:
            for name, weight in self._weights.items():
                weight.copy_(own[name])

        with undone(give_back):
            self.apply()
            yield
