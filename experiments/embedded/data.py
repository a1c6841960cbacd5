"""Rendered pairs (render.py) as tensors, the parts of their prompts, and augmentations."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.embedded.places import PLACES
from customized_grpo.embedded.scenes import ACCESSORIES, POSITIONS, Attributes
from customized_grpo.embedded.subjects import COLOURS, Subject, sprites

WORDS = sorted({Subject(i).word for held in (False, True) for i in sprites(held_out=held)})
#: Choices of a prompt by kind; None: nothing of that kind.
CHOICES: dict[str, list[str | None]] = {
    "word": [*WORDS],
    "place": [*PLACES],
    "accessory": [None, *ACCESSORIES],
    "colour": [None, *COLOURS],
    "position": [None, *POSITIONS],
}
KINDS = tuple(CHOICES)


@dataclass(frozen=True)
class Prompt:
    """A prompt by its parts."""

    word: str
    attributes: Attributes

    @property
    def text(self) -> str:
        return self.attributes.prompt(self.word)

    @property
    def parts(self) -> dict[str, str | None]:
        return {"word": self.word, **asdict(self.attributes)}

    @property
    def codes(self) -> list[int]:
        """Index of each part in its kind's `CHOICES`."""
        return [CHOICES[kind].index(self.parts[kind]) for kind in KINDS]

    def swapped(self, kind: str, choice: str | None) -> Prompt:
        """Return the prompt with one part changed."""
        return (
            Prompt(str(choice), self.attributes)
            if kind == "word"
            else replace(self, attributes=replace(self.attributes, **{kind: choice}))
        )

    def nearly(self, position: str, kind: str, rng: np.random.Generator) -> Prompt:
        """Return the prompt with one part that is wrong for an image whose subject stands at `position`."""
        right = self.parts | {"position": position}
        wrong = [c for c in CHOICES[kind] if c != right[kind] and not (kind == "position" and c is None)]
        return self.swapped(kind, wrong[int(rng.integers(len(wrong)))])


class Rendered:
    """A folder that render.py wrote. Its images are read as they are needed, or are all moved to a GPU."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        names = ("reference", "target", "reference_mask", "target_mask")
        self._arrays = {
            name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")).to(device) for name in names
        }
        entries = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
        self.subjects = [Subject(**entry["subject"]) for entry in entries]
        self.prompts = [
            Prompt(s.word, Attributes(**entry["attributes"])) for s, entry in zip(self.subjects, entries, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.subjects)

    def images(self, name: str, rows: np.ndarray | Tensor) -> Tensor:
        """Return `reference` or `target` images (B, 3, 64, 64) in [0, 1]."""
        return self._arrays[name][torch.as_tensor(rows)].permute(0, 3, 1, 2).float().div(255)

    def masks(self, name: str, rows: np.ndarray | Tensor) -> Tensor:
        """Return their subjects' masks (B, 1, 64, 64), 1 on the subject."""
        return self._arrays[f"{name}_mask"][torch.as_tensor(rows)][:, None].float()

    def position(self, row: int) -> str:
        """Return the position of a target's subject, also if its prompt leaves it open."""
        named = self.prompts[row].attributes.position
        if named is not None:
            return named
        columns = self._arrays["target_mask"][row].nonzero()[:, 1]
        middle = int(columns.min() + columns.max()) / 2 - 16
        return min(POSITIONS, key=lambda name: abs(POSITIONS[name][0] - middle))

    def rows_by_sprite(self) -> dict[int, list[int]]:
        """Return rows by the sprite of their subject."""
        rows = defaultdict(list)
        for row, subject in enumerate(self.subjects):
            rows[subject.sprite].append(row)
        return dict(rows)


def cut_out(images: Tensor, masks: Tensor) -> Tensor:
    """Return the subject alone on neutral grey, which is zero to the encoders."""
    return images * masks + 0.5 * (1 - masks)


def disturb(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) like those of an imperfect generator: a little blurred, tinted and noisy."""
    images = images.clone()
    blurred = torch.rand(len(images)) < 0.4
    if blurred.any():
        side = int(torch.randint(28, 60, ()))
        small = functional.interpolate(images[blurred], size=(side, side), mode="area")
        images[blurred] = functional.interpolate(small, size=images.shape[-2:], mode="bicubic")
    contrast = 1 + 0.1 * torch.randn(len(images), 1, 1, 1)
    brightness = 0.04 * torch.randn(len(images), 3, 1, 1)
    noise = 0.04 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)
    return ((images - 0.5) * contrast + 0.5 + brightness + noise).clamp(0, 1)
