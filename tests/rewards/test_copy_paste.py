"""The copy-paste guard against correlations worked by hand, and on the embedded world."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.copy_paste import CopyPaste
from customized_grpo.utils.pixels import to_image, to_tensor

MakePair = Callable[..., Pair]
SIDE = 64


@pytest.fixture
def guard() -> CopyPaste:
    return CopyPaste()


def pair_of(reference: Tensor, mask: np.ndarray | None = None, key: str = "a") -> Pair:
    """A pair of one reference (3, H, W); `mask` bool (H, W)."""
    return Pair(key, "a cat", (to_image(reference),), (None if mask is None else Image.fromarray(mask),))


def left(columns: int) -> Tensor:
    """One channel (64, 64), 1 in the first columns and 0 elsewhere."""
    return (torch.arange(SIDE) < columns).float().expand(SIDE, SIDE)


def noise(seed: int, side: int = SIDE) -> Tensor:
    """Pixels of 8 bits (3, side, side), so that a PIL image holds them exactly."""
    return torch.randint(256, (3, side, side), generator=torch.Generator().manual_seed(seed)) / 255


def score(guard: CopyPaste, image: Tensor, pair: Pair) -> float:
    (value,) = guard(image[None], [pair])
    return float(value)


EDGE, FLAT = left(32), torch.zeros(SIDE, SIDE)
#: Half the pixels of the reference are 1 in every channel, or in red alone.
GREY, RED = EDGE.expand(3, -1, -1), torch.stack([EDGE, FLAT, 1 - FLAT])


@pytest.mark.parametrize(
    ("reference", "image", "expected"),
    [
        # A quarter of the pixels, all among those of the reference: (1/4 - 1/8) / sqrt(1/4 * 3/16).
        (GREY, left(16).expand(3, -1, -1), 57.735),
        (GREY, EDGE.T.expand(3, -1, -1), 0),
        (GREY, 1 - GREY, -100),
        (RED, torch.stack([EDGE, 1 - FLAT, FLAT]), 100),  # channels are centred one by one
        # The reference's red, and as much variance in a green of the image's own: 1/4 / sqrt(1/4 * 1/2).
        (RED, torch.stack([EDGE, EDGE.T, FLAT]), 70.711),
    ],
)
def test_is_the_correlation_of_pixels(reference: Tensor, image: Tensor, expected: float, guard: CopyPaste) -> None:
    assert score(guard, image, pair_of(reference)) == pytest.approx(expected, abs=1e-3)


def test_a_paste_is_seen_through_light_contrast_and_size(guard: CopyPaste) -> None:
    reference = noise(0)
    cast = 0.1 + 0.5 * reference + torch.tensor([0.0, 0.1, 0.2])[:, None, None]
    assert score(guard, cast, pair_of(reference)) == pytest.approx(100, abs=1e-2)
    larger = Pair("b", "a cat", (to_image(reference).resize((256, 128)),), (None,))
    assert score(guard, to_tensor(to_image(reference).resize((128, 128))), larger) > 95
    assert abs(score(guard, noise(1), pair_of(reference))) < 5


def test_the_subject_and_its_margin_do_not_count(guard: CopyPaste) -> None:
    reference = noise(0)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[24:40, 24:40] = True
    pair = pair_of(reference, mask)
    for margin, exact in ((0, True), (4, True), (5, False)):
        image, inside = reference.clone(), slice(24 - margin, 40 + margin)
        image[:, inside, inside] = noise(1)[:, inside, inside]
        assert (score(guard, image, pair) > 99.99) is exact, margin
    # Only the subject is kept: all that counts is another's.
    image = noise(1)
    image[:, 20:44, 20:44] = reference[:, 20:44, 20:44]
    assert abs(score(guard, image, pair)) < 5
    assert score(guard, image, pair_of(reference)) > 10


def test_the_largest_of_several_references_counts(guard: CopyPaste) -> None:
    first, second = noise(0), noise(1)
    pair = Pair("a", "a cat", (to_image(first), to_image(second)), (None, None))
    assert score(guard, second, pair) == pytest.approx(100, abs=1e-2)
    mixed = 0.3 * first + 0.7 * second
    assert score(guard, mixed, pair) == pytest.approx(score(guard, mixed, pair_of(second, key="b")), abs=1e-3)


def test_a_threshold_makes_means_shares_of_copied_images() -> None:
    share, reference = CopyPaste(threshold=70), noise(0)
    images = torch.stack([reference, 0.8 * reference + 0.2 * noise(1), 0.3 * reference + 0.7 * noise(1), noise(1)])
    pairs = [pair_of(reference)] * 4
    assert (CopyPaste()(images, pairs) > 70).tolist() == [True, True, False, False]
    assert share(images, pairs).tolist() == [100, 100, 0, 0]


def test_nothing_to_compare_is_zero(guard: CopyPaste) -> None:
    everything = np.ones((SIDE, SIDE), bool)
    grey = torch.full((3, SIDE, SIDE), 0.3)
    assert score(guard, noise(0), pair_of(noise(0), everything)) == 0
    assert score(guard, grey, pair_of(noise(0))) == 0
    assert score(guard, noise(0), pair_of(grey)) == 0
    # Plain colours, resized: nothing but rounding errors is left to correlate.
    large = Pair("c", "a cat", (Image.new("RGB", (200, 133), (77, 77, 77)),), (None,))
    assert score(guard, torch.full((3, 48, 80), 77 / 255), large) == 0
    assert score(guard, torch.full((3, SIDE, SIDE), torch.nan), pair_of(noise(0))) == 0


def test_batches_and_the_cache_change_no_score(make_pair: MakePair) -> None:
    guard = CopyPaste(cache_size=2)
    pairs = [make_pair("a", 1), make_pair("b", 2, ((64, 64), (40, 90))), make_pair("a", 1), make_pair("c", 3)]
    images = torch.rand(4, 3, 40, 56)
    together = guard(images, pairs)
    assert together.shape == (4,) and together.dtype == torch.float32
    assert len(guard._cache) == 2 and torch.equal(guard(images[1:], pairs[1:]), together[1:])
    alone = torch.cat([CopyPaste()(images[i : i + 1], [pairs[i]]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_it_needs_no_model() -> None:
    with pytest.raises(RewardError, match=r"^reward 'copy-paste': copy-paste needs no model; omit its path"):
        build_reward(RewardConfig(kind="copy-paste", role="guard", path="facebook/dinov2-base"), "cpu")
