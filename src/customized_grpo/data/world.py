"""The built-in world as a dataset: pair i is drawn from (seed, split, i) alone, nothing is
stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data.errors import DataError
from customized_grpo.embedded.places import PLACES
from customized_grpo.embedded.scenes import Wish, draw_wish, render_reference
from customized_grpo.embedded.subjects import Subject, draw_subject
from customized_grpo.protocols import Pair

Split = Literal["train", "held-out"]
#: What the two worlds are called, by whether all their prompts ask for another colour.
NAMES = {False: "world", True: "world-recoloured"}
_STREAMS: dict[Split, int] = {"train": 0, "held-out": 1}


@dataclass(frozen=True)
class Draft:
    """What pair i is about. The reference's place is never the place wished for."""

    subject: Subject
    wish: Wish
    reference_place: str


class WorldPairs:
    """A PairDataset of `size` pairs of the built-in world, 64 x 64 pixels.

    "train" has the training sprites and wishes. "held-out" has the sprites that no training pair
    shows; every second of its pairs asks for a combination of wishes that none asks for, either.
    A smaller size is the beginning of a larger one. Where `recoloured`, every prompt wants the subject in another
    colour than its reference has: what identity and prompt cannot both have. Raises DataError for a negative seed.
    """

    config: DataConfig | None = None

    def __init__(self, split: Split, size: int, seed: int, *, recoloured: bool = False) -> None:
        if seed < 0:
            raise DataError([f"data.seed: {seed} is negative; give 0 or more"])
        self._split = split
        self._size = size
        self._seed = seed
        self._recoloured = recoloured

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int, /) -> Pair:
        index = self._place(index)
        draft, rng = self._draw(index)
        scene = render_reference(draft.subject, draft.reference_place, rng)
        return Pair(
            key=f"{NAMES[self._recoloured]}/{self._split}/{self._seed}/{index}",
            prompt=draft.wish.prompt(draft.subject.word),
            references=(Image.fromarray(scene.image),),
            masks=(Image.fromarray(scene.mask.astype(np.uint8) * 255),),
            subject=draft.subject.word,
        )

    def draft(self, index: int) -> Draft:
        """The subject, the wish and the reference's place of pair `index`, without painting
        them."""
        return self._draw(self._place(index))[0]

    def _place(self, index: int) -> int:
        if not -self._size <= index < self._size:
            raise IndexError(f"pair {index} of {self._size}")
        return index % self._size

    def _draw(self, index: int) -> tuple[Draft, np.random.Generator]:
        rng = np.random.default_rng([self._seed, _STREAMS[self._split], index])
        held_out = self._split == "held-out"
        subject = draw_subject(rng, held_out=held_out)
        wish = draw_wish(rng, held_out=held_out and index % 2 == 1, recoloured=self._recoloured)
        other = str(rng.choice([place for place in PLACES if place != wish.place]))
        return Draft(subject, wish, other), rng
