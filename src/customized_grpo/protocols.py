"""What the loop needs of its parts: a pair to draw, a policy that draws it, rewards that judge it.

A new model, reward or source of data is a class with these members; nothing has to be inherited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

#: What a reward that is trained on judges: is this still the subject, or does it do what the prompt says?
Role = Literal["identity", "prompt"]
ROLES: tuple[Role, Role] = ("identity", "prompt")
#: What a reward may need beside the picture.
Need = Literal["prompt", "reference", "mask"]


@dataclass(frozen=True, eq=False)
class Pair:
    """One (reference images, prompt) to draw a group of images for.

    `key` is unique in its dataset and stable between runs: features of the pair are cached under it.
    `references` are RGB pictures of the subject; `masks` (mode L, 255 on the subject, the size of its
    reference) are None where nobody drew one. `columns` holds further values of the dataset by name, for rewards.
    """

    key: str
    prompt: str
    references: tuple[Image.Image, ...]
    masks: tuple[Image.Image | None, ...]
    subject: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class PairDataset(Protocol):
    """An indexed set of pairs. `dataset[i]` may read files, and returns the same pair every time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


@dataclass(frozen=True)
class Conditions:
    """All that a policy is told of some images: tensors whose first dimension counts the images."""

    rows: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Conditions of equal signature can stand in one batch."""
        return tuple((name, tuple(rows.shape[1:])) for name, rows in sorted(self.rows.items()))

    def select(self, index: Tensor) -> Conditions:
        """Rows by index (LongTensor (B,)); rows may repeat."""
        return Conditions({name: rows[index.to(rows.device)] for name, rows in self.rows.items()})

    @staticmethod
    def join(parts: Sequence[Conditions]) -> Conditions:
        """One batch of several. Raises ValueError where their signatures differ."""
        if len({part.signature for part in parts}) != 1:
            raise ValueError("conditions of different shapes cannot stand in one batch")
        if len(parts) == 1:
            return parts[0]
        return Conditions({name: torch.cat([part.rows[name] for part in parts]) for name in parts[0].rows})


class Policy(Protocol):
    """A flow-matching generator: x_sigma = (1 - sigma) * x_0 + sigma * noise, velocity = noise - x_0."""

    @property
    def device(self) -> torch.device: ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latents, as `velocity` takes them, without the batch dimension."""
        ...

    def encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditions:
        """The conditions of one pair, one row; frozen, so that callers may keep them."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """The model's own noise levels for that many steps, float32 (steps + 1,), from 1 to 0."""
        ...

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Velocity of latents (B, ...) at noise levels (B,), float32 of the latents' shape."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures float32 (B, 3, H, W) in [0, 1] of clean latents (B, ...). Carries no gradient."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training moves, by name."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside it `velocity` is that of the untuned model."""
        ...

    def save(self, folder: Path) -> None:
        """Write what training has changed, in the form that the model's own pipeline loads."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises ValueError where it belongs to another model."""
        ...


class Reward(Protocol):
    """A judge of pictures. Higher is better; any scale.

    Its role comes from the configuration. It may have an attribute `needs`, some of `Need`: pairs that lack one of
    them are refused, and a reward on another machine is sent nothing else.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,) of pictures (B, 3, H, W) in [0, 1]; pairs[i] is what images[i] should show."""
        ...
