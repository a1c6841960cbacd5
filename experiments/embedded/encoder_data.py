"""Rendered pairs (render.py) as batches of tensors for the reward encoders, and the words that are
nearly right.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.embedded.places import PLACES
from customized_grpo.embedded.scenes import ACCESSORIES, POSITIONS, Wish
from customized_grpo.embedded.subjects import COLOURS, Subject, sprites

WORDS = sorted({Subject(i).word for held in (False, True) for i in sprites(held_out=held)})
#: What a prompt can say, kind by kind; None: nothing of that kind.
CHOICES: dict[str, list[str | None]] = {
    "word": [*WORDS],
    "place": [*PLACES],
    "accessory": [None, *ACCESSORIES],
    "colour": [None, *COLOURS],
    "position": [None, *POSITIONS],
}
KINDS = tuple(CHOICES)


@dataclasses.dataclass(frozen=True)
class Saying:
    """A prompt by its parts."""

    word: str
    wish: Wish

    @property
    def text(self) -> str:
        return self.wish.prompt(self.word)

    @property
    def codes(self) -> list[int]:
        """Index of each part in its kind's `CHOICES`."""
        parts = {"word": self.word, **dataclasses.asdict(self.wish)}
        return [CHOICES[kind].index(parts[kind]) for kind in KINDS]

    def swapped(self, kind: str, choice: str | None) -> Saying:
        """The same with one part changed."""
        if kind == "word":
            return Saying(str(choice), self.wish)
        return Saying(self.word, dataclasses.replace(self.wish, **{kind: choice}))


class Rendered:
    """A folder that render.py wrote."""

    def __init__(self, folder: Path) -> None:
        self._arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("reference", "target", "reference_mask", "target_mask")
        }
        entries = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
        self.subjects = [Subject(**entry["subject"]) for entry in entries]
        self.sayings = [
            Saying(subject.word, Wish(**entry["wish"])) for subject, entry in zip(self.subjects, entries, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.subjects)

    def pictures(self, name: str, rows: np.ndarray) -> Tensor:
        """`reference` or `target` pictures (B, 3, 64, 64) in [0, 1]."""
        return torch.from_numpy(self._arrays[name][rows]).permute(0, 3, 1, 2).float().div(255)

    def masks(self, name: str, rows: np.ndarray) -> Tensor:
        """Their subjects' masks (B, 1, 64, 64), 1 on the subject."""
        return torch.from_numpy(self._arrays[f"{name}_mask"][rows])[:, None].float()

    def position(self, row: int) -> str:
        """Where a target's subject stands, also where its prompt leaves that open."""
        said = self.sayings[row].wish.position
        if said is not None:
            return said
        columns = np.nonzero(self._arrays["target_mask"][row])[1]
        middle = (columns.min() + columns.max()) / 2 - 16
        return min(POSITIONS, key=lambda name: abs(POSITIONS[name][0] - middle))

    def rows_by_sprite(self) -> dict[int, list[int]]:
        """Rows by the sprite of their subject."""
        rows = defaultdict(list)
        for row, subject in enumerate(self.subjects):
            rows[subject.sprite].append(row)
        return dict(rows)


def nearly(saying: Saying, position: str, kind: str, rng: np.random.Generator) -> Saying:
    """The saying with one part that is wrong for a picture whose subject stands at `position`."""
    parts = {"word": saying.word, **dataclasses.asdict(saying.wish), "position": position}
    wrong = [c for c in CHOICES[kind] if c != parts[kind] and not (kind == "position" and c is None)]
    return saying.swapped(kind, wrong[int(rng.integers(len(wrong)))])


def cut_out(images: Tensor, masks: Tensor) -> Tensor:
    """The subject alone on neutral grey, which is zero to the encoders."""
    return images * masks + 0.5 * (1 - masks)


def disturb(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) as an imperfect generator may draw them: a little blurred, tinted and
    noisy.
    """
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
