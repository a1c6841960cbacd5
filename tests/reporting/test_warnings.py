"""Warnings report bad curves with the iteration where they began, and are silent on healthy ones."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from embedded import embedded

from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.reporting.collect import Series
from customized_grpo.reporting.warnings import (
    Finding,
    clip_pinned,
    coming_apart,
    competition,
    constant_reward,
    copy_paste,
    dead_groups,
    diversity_collapse,
    find_warnings,
    kl_explosion,
    many_vetoes,
    not_finite,
    notes_of,
    reward_hacking,
)

RISING = [50, 52, 54, 56, 58, 60, 62]


def at(values: list[float]) -> Series:
    return list(zip(range(0, 61, 10), values, strict=False))


def curve(values: list[float]) -> Series:
    return list(enumerate(values, start=1))


UP, DOWN = at([50, 55, 60, 65]), at([50, 51, 48, 46])
FROM_NEARLY_ZERO, SLOWLY_DOWN = at([0.01, 5, 10, 15]), at([50, 49, 48, 47])
COLLAPSING = curve([0.1] * 20 + [0.1 - 0.004 * i for i in range(20)] + [0.02] * 20)
MORE, LESS = curve([0.1] * 30 + [0.75] * 30), curve([0.75] * 30 + [0.25] * 30)
PINNED = curve([0.1] * 20 + [0.45] * 20)


@pytest.mark.parametrize(
    ("found", "since", "words"),
    [
        # (60 + 62) / 2 - 54 of 50, and 52 - (48 + 47) / 2 of 50
        (reward_hacking("identity", [at(RISING)], [at([50, 51, 52, 51, 50, 48, 47])]), [20], ["14.0%", "9.0%"]),
        # Several monitors count by their mean.
        (reward_hacking("identity", [at(RISING)], [at([40.0] * 7), at([50, 50, 50, 49, 48, 44, 44])]), [20], []),
        (competition({"identity": [UP], "prompt": [DOWN]}), [10], ["25.0% while prompt has fallen by 6.0%"]),
        (competition({"identity": [FROM_NEARLY_ZERO], "prompt": [SLOWLY_DOWN]}), [0], ["12.5%"]),  # of the largest
        (copy_paste("copy-paste", at([4, 5, 8, 10, 12, 14, 15])), [30], ["risen by 10.5 points"]),
        (diversity_collapse(COLLAPSING), range(22, 30), ["differ by 2.00%", "at first it was 10.00%"]),
        (diversity_collapse(curve([0.22] * 30 + [0.13] * 30)), range(24, 34), []),
        (dead_groups("prompt", MORE), range(24, 32), ["75%"]),
        (many_vetoes(MORE), range(24, 32), ["75%"]),
        (kl_explosion(curve([1e-4] * 50 + [1e-4 * 2**i for i in range(10)])), range(51, 58), []),
        (kl_explosion(curve([2.0] * 20)), [1], []),
        (coming_apart(curve([1e-3] * 20 + [1e-3 * 2**i for i in range(8)])), range(22, 28), ["forward.pull"]),
        (clip_pinned(PINNED, updates=2), range(14, 22), ["of at most 50%"]),
        (not_finite([{"iteration": 1, "kl": 0.1}, {"iteration": 2, "gradient_norm": None}]), [2], ["gradient norm"]),
    ],
)
def test_a_bad_curve_is_reported_with_the_iteration_where_it_began(
    found: Finding | None, since: Collection[int], words: list[str]
) -> None:
    assert found is not None and found.iteration in since
    assert all(word in f"{found.message} {found.remedy}" for word in words)


@pytest.mark.parametrize(
    "found",
    [
        # One low value at the end; less than the threshold; the mean does not fall enough; two points are no trend.
        reward_hacking("prompt", [at(RISING)], [at([50, 51, 52, 53, 54, 55, 52])]),
        reward_hacking("prompt", [at(RISING)], [at([50, 52, 51.9, 52, 51.9, 51.8, 51.9])]),
        reward_hacking("prompt", [at(RISING)], [at([40.0] * 7), at([50, 50, 50, 49, 49, 49, 49])]),
        reward_hacking("prompt", [at([50, 60])], [at([50, 40])]),
        competition({"identity": [DOWN], "prompt": [DOWN]}),
        copy_paste("copy-paste", at([4, 5, 8, 8, 7, 8, 8])),
        copy_paste("copy-paste", at([40, 30, 20])),
        diversity_collapse(curve([0.1, 0.01])),
        dead_groups("prompt", LESS),
        many_vetoes(LESS),
        many_vetoes([]),
        # Steady values and steady growth, and a jump that is over.
        *(kl_explosion(curve([1e-8 * i**power for i in range(1, 200)])) for power in (0, 3)),
        kl_explosion(curve([1e-4] * 30 + [1.0] + [1e-4] * 30)),
        coming_apart(curve([0.0] + [3e-3] * 20)),
        clip_pinned(PINNED, updates=4),  # of which 75% can be clipped
        clip_pinned(curve([0.9] * 20), updates=1),
        not_finite([{"iteration": 1, "kl": 0.1, "loss": 0.0}]),
    ],
)
def test_other_curves_are_not_reported(found: Finding | None) -> None:
    assert found is None


def test_a_reward_that_never_varies() -> None:
    rewards = embedded(Config).rewards
    records = [{"iteration": i, "reward/prompt/mean": 0.5, "prompt/std": 0.0} for i in range(1, 5)]
    found = constant_reward(rewards, "prompt", records)
    assert found is not None and found.about == "prompt" and "was 0.5 for all images" in found.message
    assert constant_reward(rewards, "identity", records) is None
    assert constant_reward(rewards, "prompt", records[:2]) is None, "too early"
    assert constant_reward(rewards, "prompt", [{**record, "prompt/std": 0.1} for record in records]) is None
    moving = [{**record, "reward/prompt/mean": float(record["iteration"])} for record in records]
    assert constant_reward(rewards, "prompt", moving) is None


def test_notes_are_about_the_right_scores() -> None:
    parted = reward_hacking("prompt", [at([50, 52, 54, 56])], [at([50, 51, 48, 47])])
    pasted = copy_paste("copy-paste", at([1, 2, 30, 40]))
    assert parted is not None and pasted is not None
    assert notes_of(embedded(Config), [parted, pasted]) == {
        "prompt": "parted at iteration 10",
        "prompt (independent)": "parted at iteration 10",
        "copy-paste": "risen at iteration 20",
    }


def run_records(slope: float) -> list[dict[str, float]]:
    """Records of a healthy default run, but for the slope of the independent identity monitor."""
    records: list[dict[str, float]] = []
    for i in range(61):
        record: dict[str, float] = {"iteration": i}
        if i:
            record |= {"diversity": 0.1, "kl": 1e-5 * i, "clip_fraction": 0.1, "loss": 0.0, "gradient_norm": 0.1}
            record |= {"share/no_signal_identity": 0.0, "share/no_signal_prompt": 0.1}
        if i % 15 == 0:
            slopes = {"identity": 0.1, "prompt": 0.1, "prompt (independent)": 0.1, "identity (independent)": slope}
            record |= {f"evaluation/{name}/mean": 50 + value * i for name, value in slopes.items()}
            record["evaluation/copy-paste/mean"] = 50.0
        records.append(record)
    return records


def test_a_healthy_run_has_no_warning_and_a_hacked_one_has_one() -> None:
    assert find_warnings(embedded(Config), run_records(0.1)) == [] == find_warnings(embedded(Config), [])
    (found,) = find_warnings(embedded(Config), run_records(-0.1))
    assert found.kind == "hacking" and found.iteration == 0


@pytest.mark.parametrize(
    ("data", "evaluation", "warned"),
    [("pairs.jsonl", "pairs.jsonl", True), ("pairs.jsonl", "others.jsonl", False), ("world", "world", False)],
)
def test_an_evaluation_on_the_training_data(data: str, evaluation: str, warned: bool) -> None:
    found = find_warnings(load_config(None, [f"data.path={data}", f"evaluation.data.path={evaluation}"]), [])
    assert [finding.kind for finding in found] == ["not held out"] * warned
    assert all(data in finding.message and "evaluation.data.path" in finding.remedy for finding in found)
