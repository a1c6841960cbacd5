"""Systems side by side on one benchmark: a table with paired differences, the plane, a grid of pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from customized_grpo.config import ConfigError
from customized_grpo.data import pictures
from customized_grpo.data.benchmark import Case
from customized_grpo.evaluation import shown_pairs
from customized_grpo.evaluation.dreambench.evaluation import Evaluated, Task, evaluate_system
from customized_grpo.evaluation.dreambench.folder import TEMPLATE, check_template
from customized_grpo.evaluation.dreambench.published import published
from customized_grpo.evaluation.dreambench.summary import paired, plain, summary, told
from customized_grpo.evaluation.dreambench.systems import find_system
from customized_grpo.evaluation.estimates import Estimate
from customized_grpo.figures.grids import Picture, image_grid
from customized_grpo.figures.plane import Interval, Point, identity_prompt_plane, planes_side_by_side
from customized_grpo.utils.records import write_bytes, write_json
from customized_grpo.utils.tables import markdown_table
from customized_grpo.utils.terminal import ABSENT

_SIGN = "+.2f"


def compare(
    given: Sequence[str],
    task: Task,
    out: Path,
    console: Console,
    *,
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    template: str | None = None,
    beside: bool = True,
) -> None:
    """`cgrpo compare`: evaluates what is not evaluated yet in folders under `out`, then shows all systems together.

    Differences are those to the first system. `beside`: with published points next to the plane, where the benchmark
    is theirs. Raises ConfigError, DataError or ModelError before anything is drawn.
    """
    template = TEMPLATE if template is None else template
    check_template(template, task.protocol.images)
    systems = [find_system(one, files, overrides, template) for one in given]
    names = [system.name for system in systems]
    if len(names) < 2:
        raise ConfigError("one system compares with nothing; give two or more")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two systems are named {repeated!r}; name them, as {repeated}-2=PATH")
    if odd := next((name for name in names if not re.fullmatch(r"\w[\w. +:-]*", name)), None):
        raise ConfigError(f"{odd!r} cannot name a folder; give another name, as NAME=PATH")
    for system in systems:
        if system.pictures is not None and system.evaluation is None:
            system.pictures.check(task.cases, task.protocol.images)
    found = [evaluate_system(system, task, out / system.name, console) for system in systems]
    evaluated = [one for one in found if one is not None]
    if len(evaluated) < len(systems):
        return
    write_bytes(out / "table.md", _markdown(evaluated, task).encode())
    write_json(out / "comparison.json", _plain(evaluated, task))
    drawn = [_plane(out / "plane.png", evaluated, task, beside), _grid(out / "grid.png", evaluated, task)]
    _show(console, evaluated, task)
    console.print("look at " + ", ".join(str(p) for p in (*filter(None, drawn), out / "table.md")), soft_wrap=True)


def _certain(change: Estimate | None) -> bool:
    """Whether the interval of a change leaves out 0; that of one subject is none."""
    return change is not None and change.low < change.high and not change.low <= 0 <= change.high


def _markdown(evaluated: Sequence[Evaluated], task: Task) -> str:
    """Notes, and one table: a line for each kind of prompts and score, each system and its difference to the first."""
    first, *others = (one.scores for one in evaluated)
    base, *names = (one.system.name for one in evaluated)
    rows = []
    for title, kind in first.sections:
        for name in first.values:
            changes = [paired(other, first, name, kind) for other in others]
            rows.append(
                [title, name, *(told(one.scores.estimate(name, kind)) for one in evaluated),
                 *(f"**{told(one, _SIGN)}**" if _certain(one) else told(one, _SIGN) for one in changes)]
            )  # fmt: skip
    notes = [*task.notes, "differences are paired by subject; bold where the interval leaves out 0"]
    table = markdown_table(["prompts", "score", base, *names, *(f"{name} - {base}" for name in names)], rows)
    return "# Comparison\n\n" + "\n".join(f"- {note}" for note in notes) + f"\n\n{table}\n"


def _plain(evaluated: Sequence[Evaluated], task: Task) -> dict[str, object]:
    pairs = [(one, other) for other, one in combinations(evaluated, 2)]
    return {
        "benchmark": task.benchmark.name,
        "protocol": task.protocol.model_dump(mode="json"),
        "left out": task.measures.left_out,
        "systems": {one.system.name: summary(one.scores) for one in evaluated},
        "differences": [
            {
                "of": one.system.name,
                "to": other.system.name,
                **{
                    title: {name: plain(paired(one.scores, other.scores, name, kind)) for name in one.scores.values}
                    for title, kind in one.scores.sections
                },
            }
            for one, other in pairs
        ],
    }


def _show(console: Console, evaluated: Sequence[Evaluated], task: Task) -> None:
    """The means over all prompts; table.md has the kinds of prompts and the intervals."""
    first = evaluated[0]
    table = Table("", *(Column(Text(name), justify="right") for name in first.scores.values))
    for one in evaluated:
        cells = []
        for name in one.scores.values:
            mean = one.scores.estimate(name)
            cell = Text(ABSENT if mean is None else f"{mean.mean:.2f}")
            change = None if one is first else paired(one.scores, first.scores, name)
            if change is not None:
                cell.append(f"\n{change.mean:+.2f}", style="bold" if _certain(change) else "dim")
                cell.append("*" if _certain(change) else " ")
            cells.append(cell)
        table.add_row(Text(one.system.name), *cells)
    console.print(table)
    for note in [*task.notes, f"below each score its difference to {first.system.name}; * its interval leaves out 0"]:
        console.print(Text(note), soft_wrap=True)


def _plane(path: Path, evaluated: Sequence[Evaluated], task: Task, beside: bool) -> Path | None:
    """None where an axis of the plane is not measured, or nobody has a point on it."""
    axes = task.protocol.axes(task.measures.names)
    if axes is None:
        return None
    points: dict[str, Point] = {}
    intervals: dict[str, Interval] = {}
    for one in evaluated:
        x, y = (one.scores.estimate(axis) for axis in axes)
        if x is not None and y is not None:
            points[one.system.name] = (x.mean, y.mean)
            intervals[one.system.name] = (x.bounds, y.bounds)
    if not points:
        return None
    title = f"measured: {task.benchmark.name}"
    if not beside or task.benchmark.name != "DreamBench":
        identity_prompt_plane(path, points, intervals, title, arrow=("", ""), labels=axes)
        return path
    others = published()
    planes_side_by_side(
        path,
        points,
        intervals,
        others.points,
        labels=axes,
        published_labels=(others.identity, others.prompt),
        titles=(title, f"published: {others.source}"),
        caveat=others.caveat,
    )
    return path


def shown_cases(cases: Sequence[Case]) -> list[Case]:
    """Which cases are looked at: a few, evenly spread over the subjects and, at the same time, over the prompts."""
    by_subject: dict[str, list[Case]] = {}
    for case in cases:
        by_subject.setdefault(case.subject, []).append(case)
    subjects, places = list(by_subject.values()), shown_pairs(len(cases))
    # The place among all cases tells the subject; taken as it is, it would tell the same prompt of each.
    spread = [(subjects[i * len(subjects) // len(places)], i / len(places)) for i in range(len(places))]
    found = list(dict.fromkeys(own[int(share * len(own))] for own, share in spread))
    return found if len(found) == len(places) else [cases[place] for place in places]


def _grid(path: Path, evaluated: Sequence[Evaluated], task: Task) -> Path:
    """A few cases: the photos that are shown to the models, and each system's first picture."""
    shown = shown_cases(task.cases)
    references = [task.benchmark.shown(case).references for case in shown]
    most = max(len(photos) for photos in references)
    rows: list[list[Picture | None]] = []
    for case, photos in zip(shown, references, strict=True):
        drawn: list[Image.Image] = [pictures.load(one.pictures.path(case, 0)) for one in evaluated]
        rows.append([*photos, *[None] * (most - len(photos)), *drawn])
    headings = ["reference"] * most + [one.system.name for one in evaluated]
    image_grid(path, rows, [case.text for case in shown], headings)
    return path
