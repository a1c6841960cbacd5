"""A study's results as a table, a verdict and pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import Evaluation, axes_of, evaluation_grid, guards_of, read_evaluation
from customized_grpo.evaluation.estimates import Estimate
from customized_grpo.figures.plane import Interval, Point, identity_prompt_plane
from customized_grpo.utils.records import write_bytes, write_json
from customized_grpo.utils.tables import markdown_table
from experiments.study.figures import gradient_evidence, learning_curves, quadrant_bars
from experiments.study.gradients import AtStep, Evidence, read_evidence
from experiments.study.plan import StudyConfig, slug
from experiments.study.results import Result
from experiments.study.statistics import dominates, front, hypervolume

GRADIENTS = "gradients.json"
#: Shares that advantages of independent noise would have, and those the paper reports, in per cent.
NOISE_SHARES = (50.0, 25.0, 25.0)
PAPER_SHARES = (50.2, 26.8, 23.0)
_SAME_BASE = 0.05  # points of a score: other processors round otherwise


@dataclass(frozen=True)
class RowSummary:
    """Of one row: gains over the base in per cent by score, and hypervolume over the base in per cent squared.

    Of a guard, whose base may be near 0, the gain is the plain difference.
    """

    seeds: int
    gains: dict[str, Estimate]
    hypervolume: dict[str, Estimate]


def by_row(study: StudyConfig, results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each row that has any, in the study's order, by rising seed."""
    rows = {name: sorted((r for r in results if r.row == name), key=lambda r: r.seed) for name in study.rows}
    return {name: found for name, found in rows.items() if found}


def summarise(
    rows: Mapping[str, list[Result]], planes: Mapping[str, tuple[str, str]], guards: Collection[str]
) -> dict[str, RowSummary]:
    return {
        name: RowSummary(
            len(found),
            {
                score: Estimate.of([r.change(score) if score in guards else r.gain(score) for r in found])
                for score in found[0].tuned
            },
            {
                plane: Estimate.of([hypervolume([(r.gain(i), r.gain(p))], (0.0, 0.0)) for r in found])
                for plane, (i, p) in planes.items()
            },
        )
        for name, found in rows.items()
    }


def front_hypervolume(
    rows: Mapping[str, list[Result]], static: Sequence[str], axes: tuple[str, str]
) -> Estimate | None:
    """Of all static weights together: seed by seed, the area that any of them reaches. None where one is missing."""
    if not static or any(name not in rows for name in static):
        return None
    seeds = set.intersection(*({r.seed for r in rows[name]} for name in static))
    areas = []
    for seed in sorted(seeds):
        at = [r for name in static for r in rows[name] if r.seed == seed]
        areas.append(hypervolume([(r.gain(axes[0]), r.gain(axes[1])) for r in at], (0.0, 0.0)))
    return Estimate.of(areas) if areas else None


def verdict(
    study: StudyConfig, summaries: Mapping[str, RowSummary], planes: Mapping[str, tuple[str, str]]
) -> list[str]:
    """What holds of the claim and what does not, plane by plane, in plain sentences."""
    if study.ours not in summaries:
        return [f"{study.ours} has no result yet"]
    ours, lines = summaries[study.ours], []
    for plane, (identity, prompt) in planes.items():
        gains = {n: (s.gains[identity].mean, s.gains[prompt].mean) for n, s in summaries.items()}
        mine, area = gains[study.ours], ours.hypervolume[plane]
        told = f"{study.ours} by the {plane}: identity {mine[0]:+.1f}%, prompt {mine[1]:+.1f}%"
        better = [name for name in study.front if name in gains and dominates(gains[name], mine)]
        told += f"; dominated by {', '.join(better)}" if better else "; no static weights dominate it"
        larger = [n for n, s in summaries.items() if n != study.ours and s.hypervolume[plane].mean >= area.mean]
        told += f"; undominated are {', '.join(front(gains))}"
        told += f"; hypervolume {area.told('.0f')}"
        told += f", not above {', '.join(larger)}" if larger else ", the largest of all rows"
        static = [summaries[name] for name in study.front if name in summaries]
        if static:
            best = max(static, key=lambda summary: summary.hypervolume[plane].mean)
            reached = best.hypervolume[plane]
            told += f"; the best static weights' is {reached.told('.0f')}"
            if min(ours.seeds, best.seeds) > 1:
                told += ", apart from it" if area.low > reached.high else ", not apart from it"
            else:
                told += "; one seed says nothing of how sure that is"
        lines.append(told)
    return lines


def write_report(study: StudyConfig, config: Config, results: Sequence[Result], out: Path) -> tuple[Table, list[str]]:
    """table.md, summary.json and the pictures in the study's folder.

    Returns the table (mean changes over the base, in per cent but for guards, and hypervolumes; table.md has the
    intervals) and the verdict.
    """
    planes, guards = axes_of(config), guards_of(config)
    rows = by_row(study, results)
    summaries = summarise(rows, planes, guards)
    told = [*_uneven_bases(rows), *verdict(study, summaries, planes)]
    scores = list(next(iter(summaries.values())).gains)
    headings, rows_told = _headings(scores, planes, guards), _cells(summaries, scores, planes)
    write_bytes(out / "table.md", (markdown_table(headings, rows_told) + "\n").encode())
    static = {plane: front_hypervolume(rows, study.front, axes) for plane, axes in planes.items()}
    write_json(
        out / "summary.json",
        {
            "rows": {name: _plain(summary) for name, summary in summaries.items()},
            "hypervolume of all static weights together": {
                plane: None if estimate is None else vars(estimate) for plane, estimate in static.items()
            },
            "verdict": told,
        },
    )
    for plane, axes in planes.items():
        _plane(out / f"plane-{plane}.png", study, rows, axes, plane)
    _curves(out / "curves.png", study, rows, guards)
    _quadrants(out / "quadrants.png", rows)
    if (out / GRADIENTS).exists():
        draw_gradients(out, read_evidence(out / GRADIENTS))
    _grid(out / "grid.png", study, config, out, rows)
    table = Table(*(Column(heading, overflow="fold") for heading in headings), title=study.title)
    for cells in rows_told:
        table.add_row(*(cell.partition(" [")[0] for cell in cells))
    return table, told


def draw_gradients(out: Path, evidence: Evidence) -> None:
    """gradients.png in the study's folder."""
    gradient_evidence(
        out / "gradients.png",
        _steps(evidence.cosines),
        _steps(evidence.agreements),
        _steps(evidence.strengths),
        evidence.at or None,
    )


def gradients_tables(evidence: Evidence) -> tuple[Table, Table]:
    """What gradients.png shows, without the intervals: whether the two roles agree, and what each of them has to learn.

    The weights learned from the latter stand beside it.
    """
    cosines, agreements, strengths = evidence.cosines, evidence.agreements, evidence.strengths
    where = evidence.at or "the base"
    steps = [(str(at.step), f"{at.sigma:.2f}") for at in next(iter(cosines.values()))]

    def table(title: str, columns: Mapping[str, Sequence[str]]) -> Table:
        headings = (Column(heading, overflow="fold") for heading in ("step", "sigma", *columns))
        filled = Table(*headings, title=title)
        for step, cells in zip(steps, zip(*columns.values(), strict=True), strict=True):
            filled.add_row(*step, *cells)
        return filled

    def values(curve: Sequence[AtStep]) -> list[str]:
        return [f"{at.value:+.4f}" for at in curve]

    return (
        table(
            f"Do the two roles' gradients agree, at {where}?",
            {f"cosine, {name}": values(curve) for name, curve in cosines.items()}
            | {f"agreement / noise, {name}": values(curve) for name, curve in agreements.items()},
        ),
        table(
            f"What each role's gradient can teach, at {where}",
            {f"signal / noise, {role}": values(curve) for role, curve in strengths.items()}
            | {f"learned weight, {role}": [f"{at.weight:.2f}" for at in curve] for role, curve in strengths.items()},
        ),
    )


def _uneven_bases(rows: Mapping[str, list[Result]]) -> list[str]:
    """A warning where the rows' bases differ by more than rounding: another model, data or judge came in between."""
    found = [result for results in rows.values() for result in results]
    uneven = {
        result.row
        for result in found
        for name, value in result.base.items()
        if abs(value - found[0].base.get(name, value)) > _SAME_BASE
    }
    return [f"not the same base as {found[0].row}'s: {', '.join(sorted(uneven))}; run them again"] if uneven else []


def _headings(scores: Sequence[str], planes: Mapping[str, object], guards: Collection[str]) -> list[str]:
    told = [score if score in guards else f"{score} %" for score in scores]
    return ["row", "seeds", *told, *(f"hypervolume ({plane})" for plane in planes)]


def _cells(summaries: Mapping[str, RowSummary], scores: Sequence[str], planes: Mapping[str, object]) -> list[list[str]]:
    return [
        [
            name,
            str(summary.seeds),
            *(summary.gains[score].told() for score in scores),
            *(summary.hypervolume[plane].told(".0f") for plane in planes),
        ]
        for name, summary in summaries.items()
    ]


def _plain(summary: RowSummary) -> dict[str, object]:
    return {
        "seeds": summary.seeds,
        "gains": {name: vars(estimate) for name, estimate in summary.gains.items()},
        "hypervolume": {name: vars(estimate) for name, estimate in summary.hypervolume.items()},
    }


def _plane(path: Path, study: StudyConfig, rows: Mapping[str, list[Result]], axes: tuple[str, str], plane: str) -> None:
    points: dict[str, Point] = {}
    intervals: dict[str, Interval] = {}
    for name, found in rows.items():
        x, y = (Estimate.of([r.tuned[axis] for r in found]) for axis in axes)
        points[name], intervals[name] = (x.mean, y.mean), (x.bounds, y.bounds)
    base = next(iter(rows.values()))[0].base
    points["base"] = (base[axes[0]], base[axes[1]])
    static = [points[name] for name in study.front if name in points]
    identity_prompt_plane(
        path,
        points,
        intervals,
        f"{study.title}: {plane}",
        static if len(static) > 1 else None,
        arrow=("base", study.ours),
        labels=axes,
    )


def _curves(path: Path, study: StudyConfig, rows: Mapping[str, list[Result]], guards: Collection[str]) -> None:
    scores = next(iter(rows.values()))[0].curves
    panels = {
        score: {name: [r.curves[score] for r in found if score in r.curves] for name, found in rows.items()}
        for score in scores
    }
    highlighted = [name for name in dict.fromkeys([*study.grid, study.ours]) if name in rows]
    learning_curves(path, panels, study.title, highlight=highlighted, absolute=guards)


def _quadrants(path: Path, rows: Mapping[str, list[Result]]) -> None:
    shares = {"independent noise": NOISE_SHARES, "the paper": PAPER_SHARES}
    for name, found in rows.items():
        means = [
            100 * sum(r.logged[f"share/{kind}"] for r in found) / len(found)
            for kind in ("conflicted", "both_positive", "both_negative")
        ]
        shares[name] = (means[0], means[1], means[2])
    quadrant_bars(path, shares)


def _steps(curves: Mapping[str, Sequence[AtStep]]) -> dict[str, list[tuple[float, float, float, float]]]:
    return {name: [(at.sigma, at.value, at.low, at.high) for at in curve] for name, curve in curves.items()}


def _grid(path: Path, study: StudyConfig, config: Config, out: Path, rows: Mapping[str, list[Result]]) -> None:
    """Reference, base and the chosen rows from the same noise, all of one seed: the first that most rows have."""
    seeds = sorted({result.seed for name in study.grid for result in rows.get(name, ())})
    found = [_grid_columns(study, config, out, rows, seed) for seed in seeds]
    columns = max(found, key=len, default={})
    if columns:
        evaluation_grid(path, open_dataset(config.evaluation.data), config.evaluation.images, columns)


def _grid_columns(
    study: StudyConfig, config: Config, out: Path, rows: Mapping[str, list[Result]], seed: int
) -> dict[str, Evaluation]:
    """Base and rows of that seed, as far as the pictures are there that their results were told from."""
    columns: dict[str, Evaluation] = {}
    for name in study.grid:
        if not any(result.seed == seed for result in rows.get(name, ())):
            continue  # what an unfinished run has drawn is of some iteration before its last
        folder = out / slug(name) / f"seed-{seed}/evaluation"
        base = read_evaluation(folder / "base", config.evaluation)
        tuned = read_evaluation(folder / "tuned", config.evaluation)
        if base is not None and tuned is not None:
            columns.setdefault("base", base)
            columns[name] = tuned
    return columns
