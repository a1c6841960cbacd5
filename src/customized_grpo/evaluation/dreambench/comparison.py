"""Comparison of systems on one benchmark: a table with paired differences, the plane, a grid of images."""

import os
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from customized_grpo.config import ConfigError
from customized_grpo.data import image_files
from customized_grpo.data.benchmark import Case
from customized_grpo.evaluation import shown_pairs
from customized_grpo.evaluation.dreambench.evaluation import Evaluated, Task, evaluate_system
from customized_grpo.evaluation.dreambench.folder import SETTINGS, TEMPLATE, check_template
from customized_grpo.evaluation.dreambench.protocol import published
from customized_grpo.evaluation.dreambench.scores import plain, shown
from customized_grpo.evaluation.dreambench.systems import find_system
from customized_grpo.figures.grids import ImageLike, image_grid
from customized_grpo.figures.plane import Interval, Point, identity_prompt_plane, planes_side_by_side
from customized_grpo.utils.records import is_partial, write_bytes, write_json
from customized_grpo.utils.tables import markdown_table, markdown_text

_RESULT = "comparison.json"


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
    """Run `cgrpo compare`: evaluate systems in folders under `out`, then show them and their differences to the first.

    `beside` shows the published points beside the plane. Raises ConfigError, DataError or ModelError before generating.
    """
    template = TEMPLATE if template is None else template
    check_template(template, task.protocol.images)
    _check_folder(out)
    systems = [find_system(one, files, overrides, template) for one in given]
    names = [system.name for system in systems]
    if len(names) < 2:
        raise ConfigError("there is only one system; give two or more to compare")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two systems are named {repeated!r}; name them, as {repeated}-2=PATH")
    if odd := next((name for name in names if not re.fullmatch(r"\w[\w. +:-]*", name)), None):
        raise ConfigError(f"{odd!r} cannot name a folder; give another name, as NAME=PATH")
    for system in systems:
        if system.images is not None and system.evaluation is None:
            system.images.check(task.cases, task.protocol.images)
    found = [evaluate_system(system, task, out / system.name, console) for system in systems]
    evaluated = [one for one in found if one is not None]
    if len(evaluated) < len(systems):
        return
    base, *others = names
    headings = ["score", *names, *(f"{name} - {base}" for name in others)]
    marked = ["score", *map(markdown_text, headings[1:])]
    notes = [*task.notes, "differences are paired by subject; bold if the interval excludes 0"]
    sections = evaluated[0].scores.sections.items()
    rows = [[title, markdown_text(row[0]), *row[1:]] for title, kind in sections for row in _rows(evaluated, kind)]
    text = "\n".join(
        ["# Comparison", "", *(f"- {note}" for note in notes), "", markdown_table(["prompts", *marked], rows)]
    )
    write_json(out / _RESULT, _plain(evaluated, task))
    write_bytes(out / "table.md", f"{text}\n".encode())
    written = [_plane(out / "plane.png", evaluated, task, beside), _grid(out / "grid.png", evaluated, task)]
    table = Table(*(Column(Text(heading), justify="right") for heading in headings))
    for row in _rows(evaluated, None):
        table.add_row(*(Text(cell.strip("*"), style="bold" if "*" in cell else "") for cell in row))
    console.print(table)
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    console.print("look at " + ", ".join(str(p) for p in (*filter(None, written), out / "table.md")), soft_wrap=True)


def _check_folder(out: Path) -> None:
    """Raise ConfigError if a folder holds something else than a comparison, finished or not."""
    here = list(out.iterdir()) if out.is_dir() else [out] if os.path.lexists(out) else []
    if not (out / _RESULT).is_file() and not all(is_partial(one) or (one / SETTINGS).is_file() for one in here):
        raise ConfigError(f"--out {out}: contains something other than a comparison; give another folder")


def _rows(evaluated: Sequence[Evaluated], kind: str | None) -> list[list[str]]:
    """Return a row for each score: its name, each system's mean, and the differences to the first system."""
    first, *others = (one.scores for one in evaluated)
    rows = []
    for name in first.values:
        rows.append([name, *(shown(scores.estimate(name, kind)) for scores in (first, *others))])
        for other in others:
            change = other.above(first, name, kind)
            # One subject has no interval.
            certain = change is not None and change.low < change.high and not change.low <= 0 <= change.high
            rows[-1].append(f"**{shown(change, '+.2f')}**" if certain else shown(change, "+.2f"))
    return rows


def _plain(evaluated: Sequence[Evaluated], task: Task) -> dict[str, object]:
    return {
        "benchmark": task.benchmark.name,
        "protocol": task.protocol.model_dump(mode="json"),
        "skipped": task.skipped,
        "systems": {one.system.name: one.scores.summary() for one in evaluated},
        "differences": [
            {
                "of": one.system.name,
                "to": other.system.name,
                **{
                    title: {name: plain(one.scores.above(other.scores, name, kind)) for name in task.metrics}
                    for title, kind in one.scores.sections.items()
                },
            }
            for other, one in combinations(evaluated, 2)
        ],
    }


def _plane(path: Path, evaluated: Sequence[Evaluated], task: Task, beside: bool) -> Path | None:
    """Write the plane unless an axis is not measured or no system has a point on it."""
    axes = task.protocol.axes(list(task.metrics))
    points: dict[str, Point] = {}
    intervals: dict[str, Interval] = {}
    for one in evaluated if axes else ():
        x, y = (one.scores.estimate(axis) for axis in axes or ())
        if x is not None and y is not None:
            points[one.system.name] = (x.mean, y.mean)
            intervals[one.system.name] = (x.bounds, y.bounds)
    if axes is None or not points:
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
    """Return at most six cases, evenly spread over the subjects and, at the same time, over the prompts."""
    by_subject: dict[str, list[Case]] = {}
    for case in cases:
        by_subject.setdefault(case.subject, []).append(case)
    subjects, places = list(by_subject.values()), shown_pairs(len(cases))
    spread = [(subjects[i * len(subjects) // len(places)], i / len(places)) for i in range(len(places))]
    found = list(dict.fromkeys(own[int(share * len(own))] for own, share in spread))
    return found if len(found) == len(places) else [cases[place] for place in places]


def _grid(path: Path, evaluated: Sequence[Evaluated], task: Task) -> Path:
    """Write a few cases: the photos that the models are shown, and each system's first image."""
    cases = shown_cases(task.cases)
    references = [task.benchmark.shown(case).references for case in cases]
    most = max(len(photos) for photos in references)
    rows: list[list[ImageLike | None]] = [
        [*photos, *[None] * (most - len(photos)), *(image_files.load(one.images.path(case, 0)) for one in evaluated)]
        for case, photos in zip(cases, references, strict=True)
    ]
    headings = ["reference"] * most + [one.system.name for one in evaluated]
    image_grid(path, rows, [case.text for case in cases], headings)
    return path
