"""UNO's references: their sizes, tokens and position ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from proofs import PROMPT, apart, flux_velocity, half_way, noise, random_image, refused, stock
from tiny_uno import policy_of


def test_references_are_appended_with_their_ids(flux_folder: Path) -> None:
    policy = policy_of(flux_folder)
    images = [random_image(16, 24, 1), random_image(24, 16, 2)]
    velocity = half_way(policy, policy.encode(PROMPT, images))
    # The image has 4x3 tokens, the references 2x3 and 3x2.
    ids = [[0, r, c] for r in range(4) for c in range(3)]
    ids += [[0, r, c] for r in (4, 5) for c in (3, 4, 5)]
    ids += [[0, r, c] for r in (6, 7, 8) for c in (6, 7)]

    pipeline, tokens = stock(flux_folder), [noise(policy)]
    for image in images:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            z = pipeline.vae.encode(pixels).latent_dist.mean
        z = ((z - 0.1) * 0.7).unfold(2, 2, 2).unfold(3, 2, 2)  # (1, channels, rows, columns, 2, 2)
        tokens.append(z.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))

    right = torch.tensor(ids, dtype=torch.float32)
    assert apart(velocity, flux_velocity(pipeline, tokens, right, 0.5)) < 1e-4
    moved, permuted = right.clone(), right.clone()
    moved[12:, 1:] += 1
    permuted[12:] = right[12:].flip(0)
    for wrong in (moved, permuted):
        assert apart(velocity, flux_velocity(pipeline, tokens, wrong, 0.5)) > 1e-3
    swapped = half_way(policy, policy.encode(PROMPT, images[::-1]))
    assert apart(velocity, swapped) > 1e-3


@pytest.mark.parametrize(("count", "sides"), [(1, (512, 297, 296)), (2, (320, 185, 184))])
def test_unos_own_sizes(flux_folder: Path, count: int, sides: tuple[int, int, int]) -> None:
    policy = policy_of(flux_folder, reference_sizes=None)
    image = random_image(131, 76, 0)
    width, shorter, cropped = sides
    rows = policy.encode(PROMPT, [image.transpose(Image.Transpose.ROTATE_90)] * count).rows
    given = image.transpose(Image.Transpose.ROTATE_90).resize((width, shorter), Image.Resampling.LANCZOS)
    given = given.crop((0, 0, width, cropped))
    expected = policy_of(flux_folder, reference_sizes=[(cropped, width)]).encode(PROMPT, [given] * count).rows
    assert rows.keys() == expected.keys() and f"reference_{count}" in rows
    for name, row in expected.items():
        assert torch.equal(rows[name], row), name
    upright = policy.encode(PROMPT, [image] * count).rows["reference_1"]
    assert upright.shape[1:3] == (width // 8, cropped // 8)
    square = policy.encode(PROMPT, [random_image(49, 49, 0)] * count).rows["reference_1"]
    assert square.shape[1:3] == (width // 8, width // 8)


def test_references_of_less_than_one_token_are_refused(flux_folder: Path) -> None:
    policy = policy_of(flux_folder, reference_sizes=None)
    refused(lambda: policy.encode(PROMPT, [random_image(4, 400, 0)]), "policy.reference_sizes", "8x8")
