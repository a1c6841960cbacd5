"""Exponential moving average of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from customized_grpo.policies.sharding import undone
from customized_grpo.protocols import Policy


class MovingAverage:
    """Average a policy's weights as decay * average + (1 - decay) * weights per update, in float32.

    It begins with the present weights. `prefix` begins the averages' names in a checkpoint.
    """

    def __init__(self, policy: Policy, decay: float, prefix: str = "ema.") -> None:
        self._decay, self._prefix = decay, prefix
        self._weights = policy.trainable()
        self._average = {name: weight.detach().float().clone() for name, weight in self._weights.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The averages by their names in a checkpoint; filling them in place loads them."""
        return {f"{self._prefix}{name}": average for name, average in self._average.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Include the present weights."""
        for name, weight in self._weights.items():
            average = self._average[name]
            average.lerp_(weight.to(average.device, average.dtype), 1 - self._decay)  # an offloaded one is elsewhere

    def apply(self) -> None:
        """Copy the averages into the policy's weights."""
        self._copy(self._average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averages as weights inside the block; restore the weights bit for bit, also after a signal."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        with undone(lambda: self._copy(own)):
            self.apply()
            yield

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(tensors[name])
