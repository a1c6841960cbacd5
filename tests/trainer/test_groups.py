"""Diversity is the images' own, and who looks on sees what was learnt from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import SeeGroups, make_trainer, metrics_of

from customized_grpo.config import Config
from customized_grpo.policies import build_policy
from customized_grpo.reporting.snapshots import best_and_worst
from customized_grpo.rewards import build_reward, score
from customized_grpo.trainer.credit import Credit
from customized_grpo.trainer.groups import Groups, group_diversity


def test_diversity_is_the_mean_distance_of_two_images() -> None:
    images = torch.rand(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    distances = [
        (images[start + i] - images[start + j]).square().mean().sqrt()
        for start in (0, 3)
        for i, j in itertools.combinations(range(3), 2)
    ]
    mean = float(torch.stack(distances).mean())
    assert group_diversity(list(images.split(3))) == pytest.approx(mean, rel=1e-6)
    opposite = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    assert group_diversity([opposite]) == pytest.approx(1.0)
    assert group_diversity([*images.split(3), opposite]) == pytest.approx((2 * mean + 1) / 3), "groups of two sizes"
    assert group_diversity([torch.rand(1, 3, 4, 4).expand(40, -1, -1, -1)]) == 0.0
    assert group_diversity(list(images.split(1))) == group_diversity([]) == 0.0


def test_best_and_worst_weigh_scores_of_any_scale_alike() -> None:
    def groups(guards: frozenset[str] = frozenset(), **scores: list[float]) -> Groups:
        given = {name: torch.tensor(values)[:, None].expand(-1, 2) for name, values in scores.items()}
        return Groups([], [], given, Credit({}, *[torch.empty(0)] * 3), torch.empty(0), guards)

    assert best_and_worst(groups(a=[1.0, 2.0, 3.0], b=[0.3, 0.2, 0.1], c=[3.0, 2.0, 1.0])) == (0, 2)
    assert best_and_worst(groups(a=[1000.0, 0.0, 0.0], b=[0.0, 0.1, 0.1], c=[0.0, 0.1, 0.0])) == (1, 2)
    assert best_and_worst(groups(a=[1.0])) == (0, 0)
    assert best_and_worst(groups(frozenset("g"), a=[1.0, 2.0, 3.0], g=[90.0, 0.0, 0.0])) == (2, 0)
    # What one score lacks the others decide.
    assert best_and_worst(groups(a=[math.nan, 2.0, 3.0], b=[3.0, 1.0, 1.0])) == (0, 1)


def test_groups_are_those_of_the_record(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(iterations=3, sample_every=2)
    policy = build_policy(config.policy)
    rewards = [build_reward(reward, policy.device) for reward in config.rewards]
    see = SeeGroups()
    make_trainer(config, tmp_path, [see], policy=policy).train()
    assert list(see.seen) == [2, 3], "every second one and the last"
    records = {record["iteration"]: record for record in metrics_of(tmp_path)}
    for iteration, groups in see.seen.items():
        assert [images.shape for images in groups.images] == [(3, 3, 16, 16)] * 3
        again = score(rewards, torch.cat(list(groups.images)), [pair for pair in groups.pairs for _ in range(3)])
        for name, values in groups.scores.items():
            assert torch.allclose(again[name].view(3, 3), values, atol=1e-4)
            assert float(values.mean()) == pytest.approx(records[iteration][f"reward/{name}/mean"])
        assert group_diversity(groups.images) == records[iteration]["diversity"] > 0
        # All steps are trained, so that the weights of the two roles average to those of the schedule.
        assert groups.learned.shape == (3, 3) and groups.learned.abs().max() > 0
