"""The headline of a report names what contradicts it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from customized_grpo.reporting.results import Score, _score, headline_of
from customized_grpo.reporting.warnings import Finding

ROSE, FELL, SAME = (1.0, 3.0), (-3.0, -1.0), (-1.0, 1.0)


def score(name: str, interval: tuple[float, float], *, guard: bool = False) -> Score:
    return Score(name, 50.0, 50.0 + sum(interval) / 2, *interval, guard)


def headline(monitors: tuple[Any, Any], rewards: tuple[Any, Any] = (ROSE, ROSE), guard: Any = SAME, *kinds: Any) -> str:
    planes = {
        "rewards": (score("dino", rewards[0]), score("clip", rewards[1])),
        "independent": (score("DINO-I", monitors[0]), score("CLIP-T", monitors[1])),
    }
    scores = {one.name: one for pair in planes.values() for one in pair}
    scores["copy-paste"] = score("copy-paste", guard, guard=True)
    return headline_of(planes, scores, [Finding(kind, "", None, "") for kind in kinds])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (headline((ROSE, ROSE)), "Identity and prompt both rose, by independent monitors"),
        (headline((ROSE, ROSE), (ROSE, FELL)), "Identity and prompt both rose, by independent monitors; but clip fell"),
        (
            headline((ROSE, ROSE), (ROSE, ROSE), ROSE, "diversity"),
            "Identity and prompt both rose, by independent monitors; but the guard copy-paste rose and images of a "
            "group became more alike",
        ),
        (
            headline((SAME, SAME), (ROSE, SAME)),
            "No change beyond the noise of the evaluation, by independent monitors; but dino rose",
        ),
        (headline((ROSE, FELL)), "Identity rose, the prompt score fell, by independent monitors"),
    ],
)
def test_no_number_contradicts_the_headline(found: str, expected: str) -> None:
    assert found == expected


def test_a_missing_score_leaves_its_image_out_of_both_models_means() -> None:
    base, tuned = [50.0, 52.0, 54.0, 56.0, 58.0, 90.0], [60.0, 62.0, 64.0, 66.0, 68.0, math.nan]
    for images in (1, 2):
        found = _score("id", base, tuned, images, guard=False)
        assert (found.base, found.tuned, found.course) == (54.0, 64.0, "rose")
    nothing = _score("id", base, [math.nan] * 6, 1, guard=False)
    assert math.isnan(nothing.change) and nothing.course == ""


@pytest.mark.parametrize(("base", "tuned", "percent"), [(50.0, 55.0, 10.0), (0.3, 4.7, None)])
def test_no_percentage_of_a_base_near_zero(base: float, tuned: float, percent: float | None) -> None:
    assert Score("a", base, tuned, None, None, False).percent == (None if percent is None else pytest.approx(percent))
