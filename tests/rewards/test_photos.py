"""The shipped encoders and the patches on real photos, and against a pasted background."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.data.dreambench import LIST, read_list
from customized_grpo.data.pictures import load
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.frame import to_tensor
from customized_grpo.world.scenes import Wish, draw_pair
from customized_grpo.world.subjects import draw_subject

REAL = Path(os.environ.get("DREAMBENCH", Path(__file__).parents[3] / "shared" / "dreambench"))
KINDS = ("dino", "dino-patches")


def build(kind: str, segmented: bool = True) -> Reward:
    path, options = "embedded/reward-identity", {"segmented": segmented}
    return build_reward(RewardConfig(kind=kind, role="identity", path=path, options=options), "cpu")


@pytest.fixture(scope="module")
def photos() -> tuple[list[Pair], Tensor]:
    """A pair of each subject of DreamBench by its first photo, and its second and third photos (30 x 2, 3, 96, 96)."""
    if not (REAL / LIST).is_file():
        pytest.skip("DreamBench is not at hand; set DREAMBENCH to its folder")
    pairs, others = [], []
    for subject, word in read_list(REAL / LIST).classes.items():
        first, *rest = (load(path).resize((96, 96)) for path in sorted((REAL / subject).glob("*.jpg"))[:3])
        pairs.append(Pair(subject, f"a {word}", (first,), (None,), word))
        others += [to_tensor(one) for one in rest]
    return pairs, torch.stack(others)


@pytest.mark.parametrize("kind", KINDS)
def test_another_photo_of_the_subject_scores_above_photos_of_others(
    kind: str, photos: tuple[list[Pair], Tensor]
) -> None:
    """Encoders of 64 pixels that have seen nothing but emoji, and photos without masks: better than chance, no more."""
    pairs, others = photos
    judge, count = build(kind), len(pairs)
    # Of each subject: both of its own other photos, and the second photos of four other subjects.
    own = judge(others, [pair for pair in pairs for _ in range(2)])
    seconds = [torch.roll(others[::2], shift, 0) for shift in (1, 7, 13, 19)]
    foreign = torch.stack([judge(one, pairs) for one in seconds])
    assert (own[:, None] > foreign.flatten()).float().mean() > 0.7  # measured: 0.78 and 0.76
    better = own.view(count, 2).mean(1) > foreign.mean(0)
    assert better.float().mean() >= 0.7  # measured: 0.90 and 0.83


def scenes(count: int) -> tuple[Tensor, Tensor, Sequence[Pair]]:
    """True pictures; the references' backgrounds with another subject pasted in; their pairs, of the embedded world."""
    rng = np.random.default_rng(5)
    drawn = [
        draw_pair(draw_subject(rng, held_out=True), Wish(("beach", "night", "city")[i % 3]), rng) for i in range(count)
    ]
    true, pasted, pairs = [], [], []
    for i, (reference, target) in enumerate(drawn):
        other, own = drawn[(i + 7) % count][0], reference.mask.astype(bool)
        picture = reference.image.copy()
        picture[own] = np.median(picture[~own], axis=0).astype(np.uint8)
        picture[other.mask.astype(bool)] = other.image[other.mask.astype(bool)]
        true.append(to_tensor(Image.fromarray(target.image)))
        pasted.append(to_tensor(Image.fromarray(picture)))
        mask = Image.fromarray(reference.mask).convert("L")
        pairs.append(Pair(str(i), "a thing", (Image.fromarray(reference.image),), (mask,)))
    return torch.stack(true), torch.stack(pasted), pairs


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_subject_elsewhere_beats_another_on_the_pasted_background(kind: str) -> None:
    true, pasted, pairs = scenes(24)
    judge = build(kind)
    assert (judge(true, pairs) > judge(pasted, pairs)).float().mean() > 0.9  # measured: 1


def test_patches_without_masks_are_fooled_by_a_pasted_background() -> None:
    """What the mask is for; the class token is not fooled so."""
    true, pasted, pairs = scenes(24)
    judge = build("dino-patches", segmented=False)
    assert (judge(true, pairs) > judge(pasted, pairs)).float().mean() < 0.5  # measured: 0.15
