"""What an evaluation comes to: means over subjects with intervals, overall, by kind of prompt, by subject."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from customized_grpo.data.benchmark import Case
from customized_grpo.data.dreambench import PROMPT_KINDS
from customized_grpo.evaluation.estimates import Estimate
from customized_grpo.utils.tables import markdown_table
from customized_grpo.utils.terminal import ABSENT

OVERALL = "overall"


@dataclass(frozen=True)
class Scores:
    """`values[name][i]` are the scores of the pictures of `cases[i]`; a missing one is NaN."""

    cases: tuple[Case, ...]
    values: dict[str, list[list[float]]]

    @property
    def kinds(self) -> list[str]:
        """Kinds of prompts that there are, in their order."""
        present = {case.kind for case in self.cases}
        return [kind for kind in PROMPT_KINDS if kind in present]

    def by_subject(self, name: str, kind: str | None = None) -> dict[str, float]:
        """The mean of each subject over its pictures (of one kind of prompt) that have this score, where one has."""
        found: dict[str, list[float]] = {}
        for case, values in zip(self.cases, self.values[name], strict=True):
            if kind is None or case.kind == kind:
                found.setdefault(case.subject, []).extend(value for value in values if math.isfinite(value))
        return {subject: sum(values) / len(values) for subject, values in found.items() if values}

    def estimate(self, name: str, kind: str | None = None) -> Estimate | None:
        """The mean over subjects, and its interval over them; None where no picture has this score."""
        means = list(self.by_subject(name, kind).values())
        return Estimate.of(means) if means else None

    def missing(self, name: str) -> int:
        """How many pictures lack this score."""
        return sum(not math.isfinite(value) for values in self.values[name] for value in values)

    @property
    def sections(self) -> list[tuple[str, str | None]]:
        """What is told of apart: (title, kind of prompts), all of them first."""
        return [(OVERALL, None), *((kind, kind) for kind in self.kinds)]


def paired(one: Scores, other: Scores, name: str, kind: str | None = None) -> Estimate | None:
    """The mean over subjects of what `one` scores above `other`, and its interval over them.

    Over the subjects that both have; None where there are none.
    """
    ours, theirs = one.by_subject(name, kind), other.by_subject(name, kind)
    changes = [value - theirs[subject] for subject, value in ours.items() if subject in theirs]
    return Estimate.of(changes) if changes else None


def plain(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else dict(vars(estimate))


def summary(scores: Scores) -> dict[str, object]:
    """All of it as JSON values."""
    names = list(scores.values)
    subjects = {case.subject: None for case in scores.cases}
    means = {name: scores.by_subject(name) for name in names}
    return {
        "subjects": len(subjects),
        "cases": len(scores.cases),
        "pictures": sum(len(values) for values in scores.values[names[0]]),
        "missing": {name: scores.missing(name) for name in names if scores.missing(name)},
        **{title: {name: plain(scores.estimate(name, kind)) for name in names} for title, kind in scores.sections},
        "by subject": {subject: {name: means[name].get(subject) for name in names} for subject in subjects},
    }


def told(estimate: Estimate | None, form: str = ".2f") -> str:
    return ABSENT if estimate is None else estimate.told(form)


def as_markdown(scores: Scores, notes: Sequence[str]) -> str:
    """Notes, then a table of the sections and one of the subjects."""
    names = list(scores.values)
    sections = [[title, *(told(scores.estimate(n, kind)) for n in names)] for title, kind in scores.sections]
    means = {name: scores.by_subject(name) for name in names}
    subjects = dict.fromkeys(case.subject for case in scores.cases)
    rows = [[subject, *(_number(means[name].get(subject)) for name in names)] for subject in subjects]
    return "\n".join(
        [*(f"- {note}" for note in notes), "", markdown_table(["prompts", *names], sections), "",
         markdown_table(["subject", *names], rows), ""]
    )  # fmt: skip


def show(console: Console, scores: Scores, notes: Sequence[str]) -> None:
    """The sections as a table on the terminal: scores down, so that it stays narrow."""
    table = Table("score", *(title for title, _ in scores.sections))
    for name in scores.values:
        table.add_row(Text(name), *(Text(told(scores.estimate(name, kind))) for _, kind in scores.sections))
    console.print(table)
    for note in notes:
        console.print(Text(note), soft_wrap=True)


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
