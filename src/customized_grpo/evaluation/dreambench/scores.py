"""Means over subjects with intervals: overall, by kind of prompt, by subject, and differences of two systems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from customized_grpo.data.benchmark import Case
from customized_grpo.data.dreambench import PROMPT_KINDS
from customized_grpo.evaluation.estimates import Estimate
from customized_grpo.utils.tables import markdown_table, markdown_text
from customized_grpo.utils.terminal import ABSENT


@dataclass(frozen=True)
class Scores:
    """Scores of a system: `values[name][i]` belong to the images of `cases[i]`. A missing score is NaN."""

    cases: tuple[Case, ...]
    values: dict[str, list[list[float]]]

    @property
    def sections(self) -> dict[str, str | None]:
        """Titles of the sections of a report, and their kind of prompts; all prompts first."""
        present = {case.kind for case in self.cases}
        return {"overall": None, **{kind: kind for kind in PROMPT_KINDS if kind in present}}

    def by_subject(self, name: str, kind: str | None = None) -> dict[str, float]:
        """Return the mean of each subject over its images of one kind of prompt, without missing scores."""
        found: dict[str, list[float]] = {}
        for case, values in zip(self.cases, self.values[name], strict=True):
            if kind is None or case.kind == kind:
                found.setdefault(case.subject, []).extend(value for value in values if math.isfinite(value))
        return {subject: sum(values) / len(values) for subject, values in found.items() if values}

    def estimate(self, name: str, kind: str | None = None) -> Estimate | None:
        """Return the mean over subjects, or None if no image has this score."""
        means = list(self.by_subject(name, kind).values())
        return Estimate.of(means) if means else None

    def above(self, other: Scores, name: str, kind: str | None = None) -> Estimate | None:
        """Return the mean difference to another system over the subjects that both have, if there are any."""
        ours, theirs = self.by_subject(name, kind), other.by_subject(name, kind)
        changes = [value - theirs[subject] for subject, value in ours.items() if subject in theirs]
        return Estimate.of(changes) if changes else None

    def summary(self) -> dict[str, object]:
        """Return all means as JSON values."""
        missing = {
            name: sum(math.isnan(value) for group in values for value in group) for name, values in self.values.items()
        }
        means = {name: self.by_subject(name) for name in self.values}
        subjects = dict.fromkeys(case.subject for case in self.cases)
        return {
            "subjects": len(subjects),
            "cases": len(self.cases),
            "images": sum(map(len, next(iter(self.values.values())))),
            "missing": {name: count for name, count in missing.items() if count},
            **{
                title: {name: plain(self.estimate(name, kind)) for name in self.values}
                for title, kind in self.sections.items()
            },
            "by subject": {subject: {name: means[name].get(subject) for name in means} for subject in subjects},
        }

    def markdown(self, notes: Sequence[str]) -> str:
        """Return the notes, a table of the sections and one of the subjects."""
        sections = [
            [title, *(shown(self.estimate(name, kind)) for name in self.values)]
            for title, kind in self.sections.items()
        ]
        means = {name: self.by_subject(name) for name in self.values}
        rows = [
            [
                markdown_text(subject),
                *(f"{means[name][subject]:.2f}" if subject in means[name] else ABSENT for name in means),
            ]
            for subject in dict.fromkeys(case.subject for case in self.cases)
        ]
        names = [markdown_text(name) for name in means]
        tables = markdown_table(["prompts", *names], sections), markdown_table(["subject", *names], rows)
        return "\n".join([*(f"- {note}" for note in notes), "", tables[0], "", tables[1], ""])


def plain(estimate: Estimate | None) -> dict[str, float] | None:
    """Convert an estimate to a dictionary for JSON."""
    return None if estimate is None else asdict(estimate)


def shown(estimate: Estimate | None, form: str = ".2f") -> str:
    """Format an estimate for a table; `ABSENT` if there is none."""
    return ABSENT if estimate is None else estimate.text(form)
