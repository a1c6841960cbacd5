"""The shipped encoders tell right from wrong on images kept from training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.embedded.scenes import Attributes, sample_pair
from customized_grpo.embedded.subjects import sample_subject
from customized_grpo.protocols import Pair
from customized_grpo.rewards import build_reward
from customized_grpo.utils.pixels import to_tensor

COUNT = 12
Samples = tuple[Tensor, Tensor, Tensor, list[Pair]]


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Images (B, 3, 64, 64) of held-out subjects, and their pairs.

    The images are the targets, the references, and the references' backgrounds with another subject pasted in.
    """
    rng = np.random.default_rng(5)
    scenes = []
    for i in range(COUNT):
        subject, attributes = sample_subject(rng, held_out=True), Attributes(("beach", "night", "city")[i % 3])
        scenes.append((*sample_pair(subject, attributes, rng), attributes.prompt(subject.word)))
    targets, references, pasted, pairs = [], [], [], []
    for i, (reference, target, prompt) in enumerate(scenes):
        other, own = scenes[(i + 7) % COUNT][0], reference.mask.astype(bool)
        image = reference.image.copy()
        image[own] = np.median(image[~own], axis=0).astype(np.uint8)
        image[other.mask.astype(bool)] = other.image[other.mask.astype(bool)]
        shown = Image.fromarray(reference.image)
        pairs.append(Pair(str(i), prompt, (shown,), (Image.fromarray(reference.mask).convert("L"),)))
        targets.append(to_tensor(Image.fromarray(target.image)))
        references.append(to_tensor(shown))
        pasted.append(to_tensor(Image.fromarray(image)))
    return torch.stack(targets), torch.stack(references), torch.stack(pasted), pairs


@pytest.mark.parametrize("name", ["reward-identity", "monitor-identity"])
def test_identity_prefers_the_subject_and_is_fooled_by_copies(name: str, samples: Samples) -> None:
    reward = build_reward(RewardConfig(kind="dino", role="identity", path=f"embedded/{name}"), "cpu")
    targets, references, _, pairs = samples
    table = torch.stack([reward(targets, [pair] * COUNT) for pair in pairs])
    right = (table.argmax(1) == torch.arange(COUNT)).float().mean()
    assert right > 0.75
    # A copy cannot be message from a true image by its score, while another subject can.
    assert reward(references, pairs).mean() > 0.9 * table.diagonal().mean()
    assert table[~torch.eye(COUNT, dtype=torch.bool)].mean() < 0.3 * table.diagonal().mean()


@pytest.mark.parametrize("name", ["reward-prompt", "monitor-prompt"])
def test_prompt_prefers_the_place_and_is_not_fooled_by_copies(name: str, samples: Samples) -> None:
    reward = build_reward(RewardConfig(kind="clip", role="prompt", path=f"embedded/{name}"), "cpu")
    targets, references, _, pairs = samples
    true = reward(targets, pairs)
    elsewhere = [
        Pair("x", Attributes("snow").prompt(pair.prompt.split()[1]), pair.references, pair.masks) for pair in pairs
    ]
    assert (true > reward(targets, elsewhere)).float().mean() > 0.9
    assert (true > reward(references, pairs)).float().mean() > 0.9


def test_masks_keep_patches_from_preferring_a_pasted_background(samples: Samples) -> None:
    """The class token is not fooled without masks, either."""
    true, copies, pasted, pairs = samples
    path = "embedded/reward-identity"
    better = {
        (kind, segmented): float((reward(true, pairs) > reward(pasted, pairs)).float().mean())
        for kind, segmented in (("dino", True), ("dino-patches", True), ("dino-patches", False))
        for config in [RewardConfig(kind=kind, role="identity", path=path, options={"segmented": segmented})]
        for reward in [build_reward(config, "cpu")]
    }
    assert better["dino", True] > 0.9 and better["dino-patches", True] > 0.9  # measured: 1 and 1
    assert better["dino-patches", False] < 0.5  # measured: 0.15
    guard = build_reward(RewardConfig(kind="copy-paste", role="guard"), "cpu")
    copied, alike = guard(copies, pairs), guard(true, pairs)
    # Skies above and grounds below make some places alike; none by chance as alike as a copy.
    assert copied.min() > 99.9 and alike.mean() < 20 and alike.max() < 95
    assert guard(pasted, pairs).min() > alike.mean()
