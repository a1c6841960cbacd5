"""Interfaces of the trainer's parts: pairs, policies and rewards.

A new model, reward or data set is any class with these members; nothing has to be inherited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

#: Roles of rewards in the method: fidelity to the subject, and to the prompt.
Role = Literal["identity", "prompt"]
ROLES: tuple[Role, Role] = ("identity", "prompt")
#: Parts of a pair that a reward may need besides the image.
Need = Literal["prompt", "reference", "mask"]


@dataclass(frozen=True, eq=False)
class Pair:
    """Reference images and a prompt to generate a group of images for.

    Attributes:
        key: Unique in its data set and stable between runs; features of the pair are cached under it.
        prompt: Text that the images should show.
        references: RGB images of the subject.
        masks: Mode L, 255 on the subject, of the size of its reference; None for references without a mask.
        subject: The subject in a word.
        columns: Further values of the data set by name, for rewards.
    """

    key: str
    prompt: str
    references: tuple[Image.Image, ...]
    masks: tuple[Image.Image | None, ...]
    subject: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class PairDataset(Protocol):
    """Indexed set of pairs. `dataset[i]` may read files, and returns the same pair every time.

    An attribute `prompts` with the prompts of all pairs is optional: it lets a trainer warn of long ones.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


@dataclass(frozen=True)
class Conditions:
    """Conditioning (embeddings) of a batch: tensors by name, whose first dimension is the batch.

    `latent_shape` is that of the images to generate; None: the policy's.
    """

    rows: dict[str, Tensor]
    latent_shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes without the batch; conditions of equal signature can be joined."""
        shapes = ((name, tuple(rows.shape[1:])) for name, rows in sorted(self.rows.items()))
        return (("latents", self.latent_shape or ()), *shapes)

    def select(self, index: Tensor) -> Conditions:
        """Select rows by index, LongTensor (B,); rows may repeat."""
        return replace(self, rows={name: rows[index.to(rows.device)] for name, rows in self.rows.items()})

    @staticmethod
    def join(parts: Sequence[Conditions]) -> Conditions:
        """Concatenate to one batch. Raises ValueError if signatures differ."""
        if len({part.signature for part in parts}) != 1:
            raise ValueError("conditions of different shapes cannot be in one batch")
        if len(parts) == 1:
            return parts[0]
        return replace(parts[0], rows={name: torch.cat([part.rows[name] for part in parts]) for name in parts[0].rows})


class Policy(Protocol):
    """Flow-matching generator: x_sigma = (1 - sigma) * x_0 + sigma * noise, velocity = noise - x_0.

    A method `prompt_tokens` is optional, for a policy and for a reward: it takes prompts and returns the number of
    tokens of each and the number that the model reads, so that a trainer can warn of prompts that are cut.
    """

    @property
    def device(self) -> torch.device:
        """Device that velocities are computed on."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latents as `velocity` takes them, without the batch dimension.

        With images of several sizes, the largest; `Conditions.latent_shape` then has that of each pair.
        """

    def encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditions:
        """Return the conditioning of one pair, one row, without gradient; callers may store it."""

    def sigmas(self, steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the model's own noise levels, float32 (steps + 1,), from 1 to 0, for latents of a shape.

        `latent_shape` is only given if conditions have one of their own.
        """

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Return the velocity of latents (B, ...) at noise levels (B,), float32 of the latents' shape."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode clean latents (B, ...) to images, float32 (B, 3, H, W) in [0, 1], without gradient."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""

    def reference(self) -> AbstractContextManager[None]:
        """Make `velocity` that of the untuned model inside the context."""

    def save(self, folder: Path) -> None:
        """Write the trained weights in the form that the model's own pipeline loads."""

    def load(self, folder: Path) -> None:
        """Read weights that `save` wrote. Raises ValueError if they belong to another model."""


class Reward(Protocol):
    """Scorer of images; higher is better, on any scale.

    The configuration gives its role. An attribute `needs`, some of `Need`, is optional: pairs that lack one of them are
    refused, and a reward on another machine receives nothing else.
    """

    @property
    def name(self) -> str:
        """Unique name among the rewards of a run; it is the key of the scores in metrics.jsonl."""

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores, float32 (B,), of images (B, 3, H, W) in [0, 1]; images[i] was generated for pairs[i]."""
