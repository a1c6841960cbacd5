"""Training on photos of several aspect ratios, whose images have several sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import SeeGroups, draw, evaluated, make_trainer, metrics_of

from customized_grpo.config import Config
from customized_grpo.planning.remedies import changed
from customized_grpo.planning.shapes import shapes_of
from customized_grpo.policies import build_policy

Make = Callable[..., Config]


def test_groups_of_several_sizes_train(photos_config: Make, tmp_path: Path) -> None:
    see = SeeGroups()
    make_trainer(photos_config(iterations=2, sample_every=1), tmp_path, [see]).train()
    seen = [one for groups in see.seen.values() for one in zip(groups.pairs, groups.images, strict=True)]
    found = {(images.shape[0], pair.references[0].size, tuple(images.shape[2:])) for pair, images in seen}
    for _, (width, height), size in found:
        aspect = {True: (16, 16), width > height: (16, 24), width < height: (24, 16)}[True]
        assert size == aspect, "each group has the size nearest to its photo"
    assert {size for _, _, size in found} == {(16, 16), (16, 24), (24, 16)} and {number for number, *_ in found} == {3}
    for record in metrics_of(tmp_path):
        assert 0 < record["diversity"] < 1 and record["gradient_norm"] > 0 and record["replay_error"] < 1e-6


def test_a_batch_has_one_size_and_images_do_not_depend_on_it(photos_config: Make) -> None:
    config = photos_config()
    policy = build_policy(config.policy)
    parts, _ = draw(policy, config)
    assert [(tuple(part.clean.shape), part.images.tolist()) for part in parts] == [
        ((3, 2, 2, 16), [0, 1, 2]), ((3, 2, 3, 16), [3, 4, 5]),
    ]  # fmt: skip
    for part in parts:
        (alone,), _ = draw(policy, config, part.images.tolist())
        torch.testing.assert_close(alone.clean, part.clean, rtol=1e-4, atol=1e-4)


def test_an_evaluation_has_the_size_of_each_photo(photos_config: Make, tmp_path: Path) -> None:
    config = photos_config()
    policy = build_policy(config.policy)
    together, alone = (evaluated(policy, config, tmp_path / str(size), batch_size=size) for size in (6, 1))
    sizes = [Image.open(path).size for path in together.images]
    assert sizes == [(16, 16), (24, 16), (16, 24), (16, 16), (16, 24), (24, 16)], "(width, height)"
    for name, scores in together.scores.items():
        assert scores == pytest.approx(alone.scores[name], abs=1e-3)


def test_a_plan_is_for_the_largest_size(photos_config: Make) -> None:
    config = photos_config()
    policy = config.policy.model_copy(update={"sizes": [(16, 16), (32, 48), (24, 16)]})
    largest = policy.model_copy(update={"sizes": None, "height": 32, "width": 48})
    found, expected, smaller = (shapes_of(one, 1) for one in (policy, largest, config.policy))
    assert (found.latent, found.decode) == (expected.latent, expected.decode) == (6 * 4 * 16, expected.decode)
    assert smaller.forward < found.forward and smaller.training < found.training
    half = changed(config, {"policy.height": 24, "policy.sizes": [[24, 16], [16, 24]]})
    assert half.policy.largest_size in ((24, 16), (16, 24))
