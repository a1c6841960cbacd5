"""Dataset of the built-in world: pair i is a function of (seed, split, i), rendered when it is read."""

from typing import Literal

import numpy as np
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data.errors import DataError
from customized_grpo.embedded.places import PLACES
from customized_grpo.embedded.scenes import Attributes, render_reference, sample_attributes
from customized_grpo.embedded.subjects import Subject, sample_subject
from customized_grpo.protocols import Pair

Split = Literal["train", "held-out"]
#: Names of the two worlds, and whether every prompt asks for another colour.
WORLDS = {"world": False, "world-recoloured": True}
_STREAMS: dict[Split, int] = {"train": 0, "held-out": 1}


class WorldPairs:
    """Dataset of `size` pairs of the built-in world, 64 x 64 pixels.

    "held-out" has sprites that no training pair shows; every second of its pairs also asks for a combination that no
    training pair asks for. A smaller size is the beginning of a larger one. With `recoloured`, every prompt asks for
    another colour than that of its reference, so that identity and prompt compete.
    """

    config: DataConfig | None = None

    def __init__(self, split: Split, size: int, seed: int, *, recoloured: bool = False) -> None:
        if seed < 0:
            raise DataError([f"data.seed: {seed} is negative; give 0 or more"])
        self._split, self._size, self._seed, self._recoloured = split, size, seed, recoloured

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int, /) -> Pair:
        subject, attributes, place, rng = self.draft(index)
        scene = render_reference(subject, place, rng)
        name = "world-recoloured" if self._recoloured else "world"
        return Pair(
            key=f"{name}/{self._split}/{self._seed}/{index % self._size}",
            prompt=attributes.prompt(subject.word),
            references=(Image.fromarray(scene.image),),
            masks=(Image.fromarray(scene.mask.astype(np.uint8) * 255),),
            subject=subject.word,
        )

    def draft(self, index: int) -> tuple[Subject, Attributes, str, np.random.Generator]:
        """Return a pair's subject, prompt attributes and place of the reference, and the generator to render it."""
        if not -self._size <= index < self._size:
            raise IndexError(f"pair {index} of {self._size}")
        index %= self._size
        rng = np.random.default_rng([self._seed, _STREAMS[self._split], index])
        held_out = self._split == "held-out"
        subject = sample_subject(rng, held_out=held_out)
        attributes = sample_attributes(rng, held_out=held_out and index % 2 == 1, recoloured=self._recoloured)
        return subject, attributes, str(rng.choice([place for place in PLACES if place != attributes.place])), rng
