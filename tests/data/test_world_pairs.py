"""The built-in world as a dataset: the same pair every time, and no split in the other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from embedded import embedded

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, open_dataset
from customized_grpo.data.world import Split, WorldPairs
from customized_grpo.embedded.scenes import Attributes
from customized_grpo.embedded.subjects import sprites
from customized_grpo.protocols import PairDataset

MANY = 120


def pairs_of(attributes: Attributes) -> set[tuple[str, str]]:
    return set(combinations(filter(None, (attributes.place, attributes.accessory, attributes.colour)), 2))


def test_a_pair_is_a_function_of_seed_split_and_number() -> None:
    for split in ("train", "held-out"):
        first = open_dataset(embedded(DataConfig, split=split, size=50, seed=3))
        again = open_dataset(embedded(DataConfig, split=split, size=20, seed=3))
        for i in (19, 0, 7):
            a, b = first[i], again[i]
            assert (a.key, a.prompt, a.subject) == (b.key, b.prompt, b.subject)
            assert a.references[0].tobytes() == b.references[0].tobytes()
            assert a.masks[0] is not None and b.masks[0] is not None and a.masks[0].tobytes() == b.masks[0].tobytes()
    datasets = [WorldPairs(split, 6, seed) for split in ("train", "held-out") for seed in (0, 1)]
    pairs = [dataset[i] for dataset in datasets for i in range(len(dataset))]
    assert len({pair.key for pair in pairs}) == len({pair.references[0].tobytes() for pair in pairs}) == 24


def test_no_sprite_and_no_combination_is_in_both_splits() -> None:
    train = [WorldPairs("train", MANY, 0).draft(i) for i in range(MANY)]
    held_out = [WorldPairs("held-out", MANY, 0).draft(i) for i in range(MANY)]
    assert {subject.sprite for subject, *_ in train} <= set(sprites(held_out=False))
    assert {subject.sprite for subject, *_ in held_out} <= set(sprites(held_out=True))
    trained = set[tuple[str, str]]().union(*(pairs_of(attributes) for _, attributes, *_ in train))
    assert all(pairs_of(attributes) - trained for _, attributes, *_ in held_out[1::2])
    assert not any(attributes.held_out for _, attributes, *_ in [*held_out[::2], *train])
    assert all(place != attributes.place for _, attributes, place, _ in [*train, *held_out]), (
        "the reference is in another place"
    )


def test_content_of_a_pair() -> None:
    dataset = WorldPairs("train", 8, 0)
    assert isinstance(dataset, PairDataset)
    for i in range(len(dataset)):
        pair = dataset[i]
        (reference,), (mask,) = pair.references, pair.masks
        assert (reference.mode, reference.size) == ("RGB", (64, 64))
        assert mask is not None and (mask.mode, mask.size) == ("L", (64, 64))
        assert set(np.unique(np.asarray(mask))) == {0, 255}
        assert pair.subject is not None and pair.subject in pair.prompt
    assert dataset[-1].key == dataset[7].key
    for index in (8, -9):
        with pytest.raises(IndexError):
            dataset[index]
    with pytest.raises(DataError, match=r"data\.seed"):
        WorldPairs("train", 5, -1)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_recoloured_world_asks_for_a_colour_in_every_prompt(split: Split) -> None:
    config = embedded(DataConfig, path="world-recoloured", split=split, size=MANY, seed=2)
    pairs, plain = open_dataset(config), open_dataset(config.model_copy(update={"path": "world"}))
    assert isinstance(pairs, WorldPairs) and isinstance(plain, WorldPairs)
    asked = [pairs.draft(i)[1] for i in range(MANY)]
    assert all(attributes.colour for attributes in asked)
    assert not all(plain.draft(i)[1].colour for i in range(MANY))
    assert [attributes.held_out for attributes in asked] == [split == "held-out" and i % 2 == 1 for i in range(MANY)]
    assert str(asked[0].colour) in pairs[0].prompt and pairs[0].key != plain[0].key
