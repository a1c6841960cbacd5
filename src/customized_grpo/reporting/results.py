"""What a run came to: each score of the base and of the tuned model, and how sure its change is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from customized_grpo.evaluation import axes_of, guards_of
from customized_grpo.reporting.collect import Run
from customized_grpo.reporting.series import mean

_CERTAIN = 1.96  # standard errors of a 95% interval

Course = Literal["rose", "fell", "unclear"]


@dataclass(frozen=True)
class Score:
    """Means over the pairs of the evaluation; `low` and `high` bound the change by a 95% interval over pairs
    (normal; None for a single pair)."""

    name: str
    base: float
    tuned: float
    low: float | None
    high: float | None
    guard: bool

    @property
    def change(self) -> float:
        return self.tuned - self.base

    @property
    def percent(self) -> float | None:
        """Of the base; None of a guard and where the base is 0."""
        return 100 * self.change / abs(self.base) if self.base and not self.guard else None

    @property
    def course(self) -> Course:
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "unclear"
        return "rose" if self.low > 0 else "fell"


@dataclass(frozen=True)
class Outcome:
    """All scores by name, the (identity, prompt) ones of each plane, and one sentence."""

    scores: dict[str, Score]
    planes: dict[str, tuple[Score, Score]]
    pairs: int
    headline: str


def outcome(run: Run) -> Outcome | None:
    """None where base and tuned are not both evaluated."""
    if run.base is None or run.tuned is None:
        return None
    guards = guards_of(run.config)
    images = max(1, len(run.base.pictures) // max(1, _pairs(run)))
    scores = {
        name: _score(name, values, run.tuned.scores[name], images, name in guards)
        for name, values in run.base.scores.items()
        if name in run.tuned.scores
    }
    planes = {
        plane: (scores[identity], scores[prompt])
        for plane, (identity, prompt) in axes_of(run.config).items()
        if identity in scores and prompt in scores
    }
    return Outcome(scores, planes, _pairs(run), _headline(planes, finished=run.finished))


def _pairs(run: Run) -> int:
    """Pictures are named by their pair and their number in it."""
    assert run.base is not None
    return len({path.stem.partition("-")[0] for path in run.base.pictures})


def _score(name: str, base: list[float], tuned: list[float], images: int, guard: bool) -> Score:
    # Pairs, not their pictures, are what was sampled.
    differences = [
        mean([after - before for before, after in zip(base[i : i + images], tuned[i : i + images], strict=True)])
        for i in range(0, len(base), images)
    ]
    middle, count = mean(differences), len(differences)
    low = high = None
    if count > 1:
        deviation = math.sqrt(sum((value - middle) ** 2 for value in differences) / (count - 1))
        reach = _CERTAIN * deviation / math.sqrt(count)
        low, high = middle - reach, middle + reach
    return Score(name, mean(base), mean(tuned), low, high, guard)


def _headline(planes: Mapping[str, tuple[Score, Score]], *, finished: bool) -> str:
    """By the independent judges where there are any."""
    if not planes:
        return "The run's result"
    plane = "independent" if "independent" in planes else "rewards"
    courses = {role: score.course for role, score in zip(("identity", "prompt"), planes[plane], strict=True)}
    by = "by judges it never trained on" if plane == "independent" else "by the rewards it trained on"
    rose, fell = ([role for role, course in courses.items() if course == kind] for kind in ("rose", "fell"))
    if len(rose) == 2:
        told = "Identity and prompt both rose"
    elif len(fell) == 2:
        told = "Identity and prompt both fell"
    elif rose and fell:
        told = f"{rose[0].capitalize()} rose at the expense of {'the prompt' if fell[0] == 'prompt' else 'identity'}"
    elif rose or fell:
        moved, verb = (rose[0], "rose") if rose else (fell[0], "fell")
        still = "prompt" if moved == "identity" else "identity"
        told = f"{moved.capitalize()} {verb}; the change of {still} is within its noise"
    else:
        told = "No change beyond the noise of the evaluation"
    return f"{told}, {by}" + ("" if finished else ", so far")
