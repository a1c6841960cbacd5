"""The shipped encoders and the patches on real photos, and against a pasted background."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.data.dreambench import LIST, read_list
from customized_grpo.data.pictures import load
from customized_grpo.embedded.scenes import Wish, draw_pair
from customized_grpo.embedded.subjects import draw_subject
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import build_reward
from customized_grpo.utils.pixels import to_tensor

REAL = Path(os.environ.get("DREAMBENCH", Path(__file__).parents[3] / "shared" / "dreambench"))
KINDS = ("dino", "dino-patches")
#: The shipped encoder of each kind.
PATHS = {
    "dino": "reward-identity",
    "dino-patches": "reward-identity",
    "clip-image": "reward-prompt",
}
SIDE = 96


def build(kind: str, **options: bool) -> Reward:
    path = f"embedded/{PATHS[kind]}" if kind in PATHS else None
    return build_reward(RewardConfig(kind=kind, role="identity", path=path, options=options), "cpu")


Photos = tuple[list[Pair], Tensor]


@pytest.fixture(scope="module")
def photos() -> Photos:
    """Return a pair of each of DreamBench's 30 subjects with its first photo, and two other photos each."""
    if not (REAL / LIST).is_file():
        pytest.skip("DreamBench is not at hand; set DREAMBENCH to its folder")
    pairs, others = [], []
    for name, word in read_list(REAL / LIST).classes.items():
        first, *rest = (load(p).resize((SIDE, SIDE)) for p in sorted((REAL / name).glob("*.jpg"))[:3])
        pairs.append(Pair(name, f"a {word}", (first,), (None,), word))
        others += [to_tensor(one) for one in rest]
    return pairs, torch.stack(others)


@pytest.mark.parametrize("kind", [*KINDS, "clip-image"])
def test_another_photo_of_the_subject_scores_above_photos_of_others(kind: str, photos: Photos) -> None:
    """Encoders of 64 pixels that have seen nothing but emoji, and photos without masks: better than chance, no more."""
    pairs, others = photos
    judge, count = build(kind), len(pairs)
    # Of each subject: both of its own other photos, and the second photos of four other subjects.
    own = judge(others, [pair for pair in pairs for _ in range(2)])
    seconds = [torch.roll(others[::2], shift, 0) for shift in (1, 7, 13, 19)]
    foreign = torch.stack([judge(one, pairs) for one in seconds])
    assert (own[:, None] > foreign.flatten()).float().mean() > 0.7  # measured: 0.78, 0.76 and 0.76
    better = own.view(count, 2).mean(1) > foreign.mean(0)
    assert better.float().mean() >= 0.7  # measured: 0.90, 0.83 and 0.77


@pytest.fixture(scope="module")
def pasted(photos: Photos) -> Photos:
    """The pairs, an ellipse in the middle marked as the subject, and four times (4, 30, 3, 96, 96) their first photos
    with another's inside it."""
    pairs, _ = photos
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((14, 14, 82, 82), fill=255)
    firsts = [pair.references[0] for pair in pairs]
    made = [
        [to_tensor(Image.composite(firsts[(i + shift) % len(firsts)], first, mask)) for i, first in enumerate(firsts)]
        for shift in (1, 7, 13, 19)
    ]
    return [replace(pair, masks=(mask,)) for pair in pairs], torch.stack([torch.stack(row) for row in made])


def share_not_fooled(judge: Reward, photos: Photos, pasted: Photos) -> float:
    """How often another photo of the subject beats another subject on the background of its own."""
    (_, others), (pairs, copies) = photos, pasted
    true = torch.stack([judge(others[i::2], pairs) for i in range(2)]).mean(0)
    return float(torch.stack([true > judge(one, pairs) for one in copies]).float().mean())


def test_patches_of_photos_are_not_fooled_by_a_copied_background(photos: Photos, pasted: Photos) -> None:
    assert share_not_fooled(build("dino-patches"), photos, pasted) > 0.6  # measured: 0.67
    assert share_not_fooled(build("dino-patches", segmented=False), photos, pasted) < 0.4  # measured: 0.27
    assert share_not_fooled(build("dino"), photos, pasted) > 0.65  # measured: 0.73


def test_the_guard_knows_pasted_photos_from_others_of_the_subject(photos: Photos, pasted: Photos) -> None:
    (_, others), (pairs, copies), guard = photos, pasted, build("copy-paste")
    true = guard(others, [pair for pair in pairs for _ in range(2)])
    assert min(float(guard(one, pairs).min()) for one in copies) > 99.9
    assert true.max() < 80 and true.mean() < 15  # measured: 69 and 4.7


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


def test_masks_keep_patches_from_preferring_a_pasted_background() -> None:
    """The class token is not fooled without masks, either."""
    true, pasted, pairs = scenes(24)
    better = {
        (kind, segmented): float((reward(true, pairs) > reward(pasted, pairs)).float().mean())
        for kind, segmented in (("dino", True), ("dino-patches", True), ("dino-patches", False))
        for reward in [build(kind, segmented=segmented)]
    }
    assert better["dino", True] > 0.9 and better["dino-patches", True] > 0.9  # measured: 1 and 1
    assert better["dino-patches", False] < 0.5  # measured: 0.15
