"""The result of a run: each score of the base and of the tuned model, with the uncertainty of its change."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from customized_grpo.evaluation import axes_of, guards_of
from customized_grpo.reporting.collect import Run
from customized_grpo.reporting.warnings import Finding, Kind, find_warnings
from customized_grpo.utils.terminal import percent

_Z95 = 1.96  # standard errors of a 95% interval
#: Warnings that a headline about scores must not hide.
_HIDDEN: Mapping[Kind, str] = {
    "diversity": "images of a group became more alike",
    "hacking": "a reward parted from its monitors",
    "not finite": "the loss was not a number",
    "not held out": "the pairs are those of the training",
    "constant reward": "a reward never varied",
}


@dataclass(frozen=True)
class Score:
    """Means over the evaluation's pairs. `low` and `high` are a normal 95% interval of the change, or None."""

    name: str
    base: float
    tuned: float
    low: float | None
    high: float | None
    guard: bool

    @property
    def change(self) -> float:
        """Mean of the tuned model minus that of the base model."""
        return self.tuned - self.base

    @property
    def percent(self) -> float | None:
        """Change in percent of the base; None for a guard or a base near 0."""
        return None if self.guard else percent(self.base, self.tuned)

    @property
    def course(self) -> str:
        """Direction of the change: "rose", "fell", or "" if the interval contains 0."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return ""
        return "rose" if self.low > 0 else "fell"


@dataclass(frozen=True)
class Outcome:
    """All scores by name, the (identity, prompt) scores of each plane, the number of pairs, and one sentence."""

    scores: dict[str, Score]
    planes: dict[str, tuple[Score, Score]]
    pairs: int
    headline: str


def outcome(run: Run) -> Outcome | None:
    """Return the result, or None before base and tuned model are both evaluated."""
    if run.base is None or run.tuned is None:
        return None
    pairs = len({path.stem.partition("-")[0] for path in run.base.images})  # files are named PAIR-NUMBER
    images = max(1, len(run.base.images) // max(1, pairs))
    guards = guards_of(run.config)
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
    headline = headline_of(planes, scores, find_warnings(run.config, run.records))
    return Outcome(scores, planes, pairs, headline + ("" if run.finished else ", so far"))


def _score(name: str, base: Sequence[float], tuned: Sequence[float], images: int, guard: bool) -> Score:
    before, after = np.array(base, dtype=float), np.array(tuned, dtype=float)
    both = np.isfinite(before) & np.isfinite(after)  # a missing score leaves its image out of both models' means
    if not both.any():
        return Score(name, math.nan, math.nan, None, None, guard)
    # Pairs are the independent samples, not their images.
    changes = np.where(both, after - before, np.nan).reshape(-1, images)
    by_pair = np.nanmean(changes[both.reshape(-1, images).any(1)], axis=1)
    low = high = None
    if len(by_pair) > 1:
        middle, reach = by_pair.mean(), _Z95 * by_pair.std(ddof=1) / math.sqrt(len(by_pair))
        low, high = float(middle - reach), float(middle + reach)
    return Score(name, float(before[both].mean()), float(after[both].mean()), low, high, guard)


def headline_of(
    planes: Mapping[str, tuple[Score, Score]], scores: Mapping[str, Score], findings: Iterable[Finding]
) -> str:
    """Return the result in a sentence, with all that it would hide.

    These are scores that fell, guards that rose, less diversity, a warning.
    """
    headline = _headline(planes)
    in_headline = {one.name for one in planes.get("independent", planes.get("rewards", ()))}
    others = [one for one in scores.values() if not one.guard and one.name not in in_headline]
    against = [f"{one.name} fell" for one in others if one.course == "fell"]
    if "No change" in headline:
        against += [f"{one.name} rose" for one in others if one.course == "rose"]
    against += [f"the guard {one.name} rose" for one in scores.values() if one.guard and one.course == "rose"]
    kinds = {finding.kind for finding in findings}
    against += [text for kind, text in _HIDDEN.items() if kind in kinds]
    return headline + (f"; but {' and '.join(against)}" if against else "")


def _headline(planes: Mapping[str, tuple[Score, Score]]) -> str:
    """Summarize the scores of independent monitors, or of the rewards if there are none."""
    if not planes:
        return "The result of the run"
    independent = "independent" in planes
    identity, prompt = (score.course for score in planes["independent" if independent else "rewards"])
    by = "by independent monitors" if independent else "by the rewards it was trained on"
    if identity == prompt:
        text = f"Identity and prompt both {identity}" if identity else "No change beyond the noise of the evaluation"
    elif identity and prompt:
        text = f"Identity {identity}, the prompt score {prompt}"
    elif identity:
        text = f"Identity {identity}; the change of prompt is within its noise"
    else:
        text = f"Prompt {prompt}; the change of identity is within its noise"
    return f"{text}, {by}"
