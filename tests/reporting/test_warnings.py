"""Warnings report bad curves with the iteration where they began, and are silent on healthy ones."""

from __future__ import annotations

import pytest
from embedded import embedded

from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.reporting.collect import Series
from customized_grpo.reporting.warnings import (
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


def test_hacking_is_found_at_the_iteration_of_parting() -> None:
    found = reward_hacking("identity", [at(RISING)], [at([50, 51, 52, 51, 50, 48, 47])])
    assert found is not None and found.kind == "hacking" and found.iteration == 20
    # (60 + 62) / 2 - 54 of 50, and 52 - (48 + 47) / 2 of 50
    assert "risen by 14.0%" in found.message and "fallen by 9.0%" in found.message
    two = [at([40.0] * 7), at([50, 50, 50, 49, 48, 44, 44])]
    assert reward_hacking("identity", [at(RISING)], two) is not None, "several monitors count by their mean"


@pytest.mark.parametrize(
    ("reward", "monitors"),
    [
        (RISING, [[50, 51, 52, 53, 54, 55, 52]]),  # one low value at the end
        (RISING, [[50, 52, 51.9, 52, 51.9, 51.8, 51.9]]),  # less than the threshold
        (RISING, [[40.0] * 7, [50, 50, 50, 49, 49, 49, 49]]),  # the mean does not fall enough
        ([50, 60], [[50, 40]]),  # two points are no trend
    ],
)
def test_no_hacking(reward: list[float], monitors: list[list[float]]) -> None:
    assert reward_hacking("prompt", [at(reward)], [at(monitor) for monitor in monitors]) is None


def test_one_role_at_the_expense_of_the_other() -> None:
    up, down = at([50, 55, 60, 65]), at([50, 51, 48, 46])
    found = competition({"identity": [up], "prompt": [down]})
    assert found is not None and found.iteration == 10
    assert found.message == "Held-out identity has risen by 25.0% while prompt has fallen by 6.0%."
    assert competition({"identity": [down], "prompt": [down]}) is None


def test_copied_references() -> None:
    found = copy_paste("copy-paste", at([4, 5, 8, 10, 12, 14, 15]))
    assert found is not None and found.iteration == 30 and "risen by 10.5 points" in found.message
    assert copy_paste("copy-paste", at([4, 5, 8, 8, 7, 8, 8])) is None
    assert copy_paste("copy-paste", at([40, 30, 20])) is None


def test_collapse_of_diversity() -> None:
    found = diversity_collapse(curve([0.1] * 20 + [0.1 - 0.004 * i for i in range(20)] + [0.02] * 20))
    assert found is not None and found.iteration is not None and found.iteration in range(22, 30)
    assert "differ by 2.00%" in found.message and "at first it was 10.00%" in found.message
    assert diversity_collapse(curve([0.22] * 30 + [0.13] * 30)) is not None, "a fall of a third is one"
    assert diversity_collapse(curve([0.1, 0.01])) is None, "two iterations are no trend"


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


def test_changes_of_scores_near_zero_are_of_their_largest_value() -> None:
    up, down = at([0.01, 5, 10, 15]), at([50, 49, 48, 47])
    found = competition({"identity": [up], "prompt": [down]})
    assert found is not None and "identity has risen by 12.5%" in found.message


def test_groups_without_signal_and_vetoes() -> None:
    late, early = curve([0.1] * 30 + [0.75] * 30), curve([0.75] * 30 + [0.25] * 30)
    for found in (dead_groups("prompt", late), many_vetoes(late)):
        assert found is not None and found.iteration in range(24, 32) and "75%" in found.message
    assert dead_groups("prompt", early) is None and many_vetoes(early) is None and many_vetoes([]) is None


@pytest.mark.parametrize("power", [0, 3])
def test_steady_growth_of_the_kl_is_no_explosion(power: int) -> None:
    assert kl_explosion(curve([1e-8 * i**power for i in range(1, 200)])) is None


def test_explosion_of_the_kl() -> None:
    found = kl_explosion(curve([1e-4] * 50 + [1e-4 * 2**i for i in range(10)]))
    assert found is not None and found.iteration in range(51, 58)
    assert kl_explosion(curve([1e-4] * 30 + [1.0] + [1e-4] * 30)) is None, "a jump that is over"
    assert kl_explosion(curve([2.0] * 20)) is not None, "high from the start"


def test_a_policy_that_leaves_its_moving_average_is_coming_apart() -> None:
    found = coming_apart(curve([1e-3] * 20 + [1e-3 * 2**i for i in range(8)]))
    assert found is not None and found.iteration in range(22, 28) and "forward.pull" in found.remedy
    assert coming_apart(curve([0.0] + [3e-3] * 20)) is None


def test_pinned_clip_fraction() -> None:
    pinned = curve([0.1] * 20 + [0.45] * 20)
    found = clip_pinned(pinned, updates=2)
    assert found is not None and found.iteration in range(14, 22) and "of at most 50%" in found.message
    assert clip_pinned(pinned, updates=4) is None, "with four updates 75% can be clipped"
    assert clip_pinned(curve([0.9] * 20), updates=1) is None


def test_numbers_that_are_not_finite() -> None:
    found = not_finite([{"iteration": 1, "kl": 0.1}, {"iteration": 2, "gradient_norm": None}])
    assert found is not None and found.iteration == 2 and "gradient norm" in found.message
    assert not_finite([{"iteration": 1, "kl": 0.1, "loss": 0.0}]) is None


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
