"""The built-in world as a dataset: the same pair every time, and no split in the other."""

from pathlib import Path

import numpy as np
import pytest
from embedded import embedded
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, open_dataset
from customized_grpo.data.world import WorldPairs
from customized_grpo.embedded.scenes import Wish
from customized_grpo.embedded.subjects import sprites
from customized_grpo.protocols import PairDataset

MANY = 120


def combinations(wish: Wish) -> set[tuple[str, str]]:
    parts = [("place", wish.place), ("accessory", wish.accessory), ("colour", wish.colour)]
    given = [f"{kind} {value}" for kind, value in parts if value]
    return {(a, b) for i, a in enumerate(given) for b in given[i + 1 :]}


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_pair_is_a_function_of_seed_split_and_number(split: str) -> None:
    first = open_dataset(embedded(DataConfig, split=split, size=50, seed=3))
    again = open_dataset(embedded(DataConfig, split=split, size=20, seed=3))
    for i in (19, 0, 7):
        a, b = first[i], again[i]
        assert (a.key, a.prompt, a.subject) == (b.key, b.prompt, b.subject)
        assert np.array_equal(np.asarray(a.references[0]), np.asarray(b.references[0]))
        assert a.masks[0] is not None
        assert b.masks[0] is not None
        assert np.array_equal(np.asarray(a.masks[0]), np.asarray(b.masks[0]))


def test_seeds_splits_and_numbers_differ() -> None:
    datasets = [WorldPairs(split, 6, seed) for split in ("train", "held-out") for seed in (0, 1)]
    pairs = [dataset[i] for dataset in datasets for i in range(len(dataset))]
    assert len(pairs) == 24
    assert len({pair.key for pair in pairs}) == 24
    assert len({pair.references[0].tobytes() for pair in pairs}) == 24


def test_no_sprite_and_no_combination_is_in_both_splits() -> None:
    train = [WorldPairs("train", MANY, 0).draft(i) for i in range(MANY)]
    held_out = [WorldPairs("held-out", MANY, 0).draft(i) for i in range(MANY)]
    assert {draft.subject.sprite for draft in train} <= set(sprites(held_out=False))
    assert {draft.subject.sprite for draft in held_out} <= set(sprites(held_out=True))
    trained = set[tuple[str, str]]().union(*(combinations(draft.wish) for draft in train))
    for draft in held_out[1::2]:
        assert combinations(draft.wish) - trained
    assert not any(draft.wish.held_out for draft in held_out[::2])
    assert not any(draft.wish.held_out for draft in train)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_reference_stands_in_another_place(split: str) -> None:
    dataset = WorldPairs(split, MANY, 5)  # type: ignore[arg-type]
    assert all(draft.reference_place != draft.wish.place for draft in (dataset.draft(i) for i in range(MANY)))


def test_what_a_pair_holds() -> None:
    dataset = WorldPairs("train", 8, 0)
    assert isinstance(dataset, PairDataset)
    for i in range(len(dataset)):
        pair = dataset[i]
        (reference,), (mask,) = pair.references, pair.masks
        assert (reference.mode, reference.size) == ("RGB", (64, 64))
        assert mask is not None
        assert (mask.mode, mask.size) == ("L", (64, 64))
        assert set(np.unique(np.asarray(mask))) == {0, 255}
        assert pair.subject == dataset.draft(i).subject.word
        assert pair.subject is not None
        assert pair.subject in pair.prompt


def test_numbers_beyond_the_end() -> None:
    dataset = WorldPairs("train", 8, 0)
    assert dataset[-1].key == dataset[7].key
    for index in (8, -9):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.seed"):
        WorldPairs("train", 5, -1)


def test_a_size_takes_pairs_of_a_file_evenly_spread(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    lines = "".join(f'{{"prompt": "{i}", "references": ["a.png"]}}\n' for i in range(10))
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8")
    config = embedded(DataConfig, path=str(tmp_path / "pairs.jsonl"))
    assert len(open_dataset(config)) == 10
    few = open_dataset(config.model_copy(update={"size": 4}))
    assert [few[i].prompt for i in range(len(few))] == ["0", "2", "5", "7"]
    assert len(open_dataset(config.model_copy(update={"size": 40}))) == 10


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_recoloured_world_asks_for_a_colour_in_every_prompt(split: str) -> None:
    config = embedded(DataConfig, path="world-recoloured", split=split, size=MANY, seed=2)
    pairs, plain = open_dataset(config), open_dataset(config.model_copy(update={"path": "world"}))
    assert isinstance(pairs, WorldPairs) and isinstance(plain, WorldPairs)
    wishes = [pairs.draft(i).wish for i in range(MANY)]
    assert all(wish.colour for wish in wishes)
    assert not all(plain.draft(i).wish.colour for i in range(MANY))
    assert [wish.held_out for wish in wishes] == [split == "held-out" and i % 2 == 1 for i in range(MANY)]
    assert str(wishes[0].colour) in pairs[0].prompt and pairs[0].key != plain[0].key
