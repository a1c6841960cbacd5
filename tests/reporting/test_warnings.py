"""Warnings fire on curves that have gone wrong, name the iteration, and are silent on healthy ones."""

from __future__ import annotations

import pytest
from embedded import embedded

from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.reporting import find_warnings, notes_of
from customized_grpo.reporting.series import Series
from customized_grpo.reporting.warnings import (
    clip_pinned,
    competition,
    copy_paste,
    dead_groups,
    diversity_collapse,
    kl_explosion,
    many_vetoes,
    not_finite,
    reward_hacking,
)

EVALUATED = range(0, 61, 10)


def at(values: list[float]) -> Series:
    return list(zip(EVALUATED, values, strict=False))


def curve(values: list[float]) -> Series:
    return list(enumerate(values, start=1))


def test_hacking_is_found_at_the_iteration_of_parting() -> None:
    reward = at([50, 52, 54, 56, 58, 60, 62])
    judge = at([50, 51, 52, 51, 50, 48, 47])
    found = reward_hacking("identity", [reward], [judge])
    assert found is not None and found.kind == "hacking" and found.iteration == 20
    # (60 + 62) / 2 - 54 of 50, and 52 - (48 + 47) / 2 of 50
    assert "risen by 14.0%" in found.told and "fallen by 9.0%" in found.told


@pytest.mark.parametrize(
    "judge",
    [
        [50, 51, 52, 53, 54, 55, 56],  # rises, too
        [50, 51, 52, 53, 54, 55, 52],  # one low value at the end
        [50, 52, 51.9, 52, 51.9, 51.8, 51.9],  # less than the threshold
    ],
)
def test_judges_that_follow_are_no_hacking(judge: list[float]) -> None:
    assert reward_hacking("prompt", [at([50, 52, 54, 56, 58, 60, 62])], [at(judge)]) is None


def test_falling_together_is_no_hacking_and_nothing_is_said_without_judges() -> None:
    falling = at([50, 49, 48, 47, 46, 45, 44])
    assert reward_hacking("prompt", [falling], [falling]) is None
    assert reward_hacking("prompt", [at([50, 60, 70, 80])], []) is None
    assert reward_hacking("prompt", [at([50, 60])], [at([50, 40])]) is None, "two points are no course"


def test_several_judges_count_by_their_mean() -> None:
    reward, steady = at([50, 52, 54, 56, 58, 60, 62]), at([40.0] * 7)
    assert reward_hacking("identity", [reward], [steady, at([50, 50, 50, 49, 48, 44, 44])]) is not None
    assert reward_hacking("identity", [reward], [steady, at([50, 50, 50, 49, 49, 49, 49])]) is None


def test_one_role_at_the_expense_of_the_other() -> None:
    up, down = at([50, 55, 60, 65]), at([50, 51, 48, 46])
    found = competition({"identity": [up], "prompt": [down]})
    assert found is not None and found.iteration == 10
    assert found.told == "Held-out identity has risen by 25.0% while prompt has fallen by 6.0%."
    assert competition({"identity": [up], "prompt": [up]}) is None
    assert competition({"identity": [down], "prompt": [down]}) is None


def test_pasted_references() -> None:
    found = copy_paste("copy-paste", at([4, 5, 8, 10, 12, 14, 15]))
    assert found is not None and found.iteration == 30 and "risen by 10.5 points" in found.told
    assert copy_paste("copy-paste", at([4, 5, 8, 8, 7, 8, 8])) is None
    assert copy_paste("copy-paste", at([40, 30, 20])) is None


def test_collapse_of_diversity() -> None:
    falls = curve([0.1] * 20 + [0.1 - 0.004 * i for i in range(20)] + [0.02] * 20)
    found = diversity_collapse(falls)
    assert found is not None and found.iteration is not None
    assert 28 <= found.iteration <= 34, "half of 0.1 is passed at iteration 33, by a running mean of 12"
    assert diversity_collapse(curve([0.1] * 30 + [0.06] * 30)) is None
    assert diversity_collapse(curve([0.1, 0.01])) is None, "two iterations are no course"


def test_dead_groups() -> None:
    found = dead_groups("prompt", curve([0.0] * 30 + [0.75] * 30))
    assert found is not None and "prompt" in found.told and "75%" in found.told
    assert found.iteration is not None and 24 <= found.iteration <= 31
    assert dead_groups("prompt", curve([0.75] * 30 + [0.25] * 30)) is None


def test_notes_are_of_the_scores_that_are_meant() -> None:
    config = embedded(Config)
    parted = reward_hacking("prompt", [at([50, 52, 54, 56])], [at([50, 51, 48, 47])])
    pasted = copy_paste("copy-paste", at([1, 2, 30, 40]))
    assert parted is not None and pasted is not None
    assert notes_of(config, [parted, pasted]) == {
        "prompt": "parted at iteration 10",
        "prompt (independent)": "parted at iteration 10",
        "copy-paste": "risen at iteration 20",
    }
    assert notes_of(config, []) == {}


def test_many_vetoes() -> None:
    found = many_vetoes(curve([0.1] * 30 + [0.75] * 30))
    assert found is not None and "veto 75% of the pictures" in found.told
    assert found.iteration is not None and 24 <= found.iteration <= 31
    assert many_vetoes(curve([0.75] * 30 + [0.25] * 30)) is None
    assert many_vetoes([]) is None, "a run without such a guard"


@pytest.mark.parametrize("power", [0, 1, 2, 3])
def test_steady_growth_of_the_kl_is_no_explosion(power: int) -> None:
    assert kl_explosion(curve([1e-8 * i**power for i in range(1, 200)])) is None


def test_explosion_of_the_kl() -> None:
    found = kl_explosion(curve([1e-4] * 50 + [1e-4 * 2**i for i in range(10)]))
    assert found is not None and found.iteration is not None and 51 <= found.iteration <= 57
    assert kl_explosion(curve([1e-4] * 30 + [1.0] + [1e-4] * 30)) is None, "a leap that is over"
    assert kl_explosion(curve([2.0] * 20)) is not None, "high from the start"


def test_pinned_clip_fraction() -> None:
    pinned = curve([0.1] * 20 + [0.45] * 20)
    found = clip_pinned(pinned, updates=2)
    assert found is not None and found.iteration is not None and 14 <= found.iteration <= 21
    assert clip_pinned(pinned, updates=4) is None, "with four updates 75% can be clipped"
    assert clip_pinned(curve([0.9] * 20), updates=1) is None


def test_numbers_that_are_not_finite() -> None:
    found = not_finite([{"iteration": 1, "kl": 0.1}, {"iteration": 2, "gradient_norm": None}])
    assert found is not None and found.iteration == 2 and "gradient norm" in found.told
    assert not_finite([{"iteration": 1, "kl": 0.1, "loss": 0.0}]) is None


def run_records(judge: float) -> list[dict[str, float]]:
    """A default run in which all goes well but for the independent identity judge's slope."""
    records: list[dict[str, float]] = []
    for i in range(61):
        record: dict[str, float] = {"iteration": i}
        if i:
            record |= {"diversity": 0.1, "kl": 1e-5 * i, "clip_fraction": 0.1, "loss": 0.0, "gradient_norm": 0.1}
            record |= {"share/no_signal_identity": 0.0, "share/no_signal_prompt": 0.1}
        if i % 15 == 0:
            for name, slope in (("identity", 0.1), ("prompt", 0.1), ("prompt (independent)", 0.1), ("copy-paste", 0.0)):
                record[f"evaluation/{name}/mean"] = 50 + slope * i
            record["evaluation/identity (independent)/mean"] = 50 + judge * i
        records.append(record)
    return records


def test_a_healthy_run_has_no_warning_and_a_hacked_one_that_alone() -> None:
    assert find_warnings(embedded(Config), run_records(judge=0.1)) == []
    (found,) = find_warnings(embedded(Config), run_records(judge=-0.1))
    assert found.kind == "hacking" and found.iteration == 0
    assert find_warnings(embedded(Config), []) == []


@pytest.mark.parametrize(
    ("data", "evaluation", "told"),
    [("pairs.jsonl", "pairs.jsonl", True), ("pairs.jsonl", "others.jsonl", False), ("world", "world", False)],
)
def test_scores_of_what_was_trained_on_are_told_of(data: str, evaluation: str, told: bool) -> None:
    found = find_warnings(load_config(None, [f"data.path={data}", f"evaluation.data.path={evaluation}"]), [])
    assert [finding.kind for finding in found] == ["not held out"] * told
    assert all(data in finding.told and "evaluation.data.path" in finding.remedy for finding in found)
