"""Report a study's results as a table, a verdict and figures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import Evaluation, axes_of, evaluation_grid, guards_of, read_evaluation
from customized_grpo.evaluation.estimates import Estimate
from customized_grpo.figures.plane import Interval, Point, identity_prompt_plane
from customized_grpo.utils.records import write_bytes, write_json
from customized_grpo.utils.tables import markdown_table, markdown_text
from experiments.study.figures import draw_gradients, learning_curves, on_shared_iterations, quadrant_bars
from experiments.study.gradients import AtStep, Evidence, read_evidence
from experiments.study.plan import StudyConfig, slug
from experiments.study.results import Result
from experiments.study.seconds import read_seconds
from experiments.study.statistics import dominates, front, hypervolume

GRADIENTS = "gradients.json"
#: Shares in per cent (conflicted, both positive, both negative) of independent noise, and those the paper reports.
NOISE_SHARES = (50.0, 25.0, 25.0)
PAPER_SHARES = (50.2, 26.8, 23.0)
_SAME_BASE = 0.05  # points of a score: other processors round otherwise
Rows = Mapping[str, list[Result]]
Planes = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class RowSummary:
    """Gains of a row over the base by score, and hypervolumes by plane.

    Args:
        seeds: Number of seeds.
        gains: Gains in per cent; for a guard, whose base may be near 0, the plain difference.
        hypervolume: Hypervolumes over the base in per cent squared.
    """

    seeds: int
    gains: dict[str, Estimate]
    hypervolume: dict[str, Estimate]


def by_row(study: StudyConfig, results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results of each row that has any, in the study's order, by rising seed."""
    rows = {name: sorted((r for r in results if r.row == name), key=lambda r: r.seed) for name in study.rows}
    return {name: found for name, found in rows.items() if found}


def summarise(rows: Rows, planes: Planes, guards: Collection[str]) -> dict[str, RowSummary]:
    """Return the summary of each row."""
    return {
        name: RowSummary(
            len(found),
            {
                score: Estimate.of([r.change(score) if score in guards else r.gain(score) for r in found])
                for score in found[0].tuned
            },
            {plane: Estimate.of([_area([r], axes) for r in found]) for plane, axes in planes.items()},
        )
        for name, found in rows.items()
    }


def progress(rows: Rows, planes: Planes, seconds: Mapping[str, float]) -> str:
    """Return a Markdown table of gains and areas over the base at each evaluation that all seeds of a row have.

    `seconds` are those of an iteration by row, for a column of minutes where they are known.
    """
    headings = ["row", "seeds", "iterations", *(["minutes"] if seconds else [])]
    headings += [text for plane in planes for text in ("identity %", "prompt %", f"area ({plane})")]
    cells = []
    for name, found in rows.items():
        gains: dict[str, np.ndarray] = {}
        for score in dict.fromkeys(score for axes in planes.values() for score in axes):
            shared, gains[score] = on_shared_iterations(name, [r.curves[score] for r in found], relative=True)
        for place, at in enumerate(shared[1:], start=1):  # the first is the base
            cell = [markdown_text(name), str(len(found)), str(at)]
            if seconds:
                cell.append(f"{at * seconds[name] / 60:.1f}" if name in seconds else "")
            for axes in planes.values():
                identity, prompt = (gains[score][:, place].tolist() for score in axes)
                areas = [hypervolume([point], (0.0, 0.0)) for point in zip(identity, prompt, strict=True)]
                cell += [Estimate.of(identity).text(), Estimate.of(prompt).text(), Estimate.of(areas).text(".0f")]
            cells.append(cell)
    return markdown_table(headings, cells)


def _area(results: Sequence[Result], axes: tuple[str, str]) -> float:
    return hypervolume([(r.gain(axes[0]), r.gain(axes[1])) for r in results], (0.0, 0.0))


def front_hypervolume(rows: Rows, static: Sequence[str], axes: tuple[str, str]) -> Estimate | None:
    """Return the hypervolume of all static weights together, over seeds; None if a row is missing."""
    if not static or any(name not in rows for name in static):
        return None
    seeds = set.intersection(*({r.seed for r in rows[name]} for name in static))
    areas = [_area([r for name in static for r in rows[name] if r.seed == seed], axes) for seed in sorted(seeds)]
    return Estimate.of(areas) if areas else None


def verdict(study: StudyConfig, summaries: Mapping[str, RowSummary], planes: Planes) -> list[str]:
    """Return a sentence for each plane on what holds of the claim and what does not."""
    if study.ours not in summaries:
        return [f"{study.ours} has no result yet"]
    ours, lines = summaries[study.ours], []
    for plane, (identity, prompt) in planes.items():
        gains = {n: (s.gains[identity].mean, s.gains[prompt].mean) for n, s in summaries.items()}
        mine, area = gains[study.ours], ours.hypervolume[plane]
        better = [name for name in study.front if name in gains and dominates(gains[name], mine)]
        larger = [n for n, s in summaries.items() if n != study.ours and s.hypervolume[plane].mean >= area.mean]
        parts = [
            f"{study.ours} by the {plane}: identity {mine[0]:+.1f}%, prompt {mine[1]:+.1f}%",
            f"dominated by {', '.join(better)}" if better else "no static weights dominate it",
            f"undominated are {', '.join(front(gains))}",
            f"hypervolume {area.text('.0f')}, "
            + (f"not above {', '.join(larger)}" if larger else "the largest of all rows"),
        ]
        static = [summaries[name] for name in study.front if name in summaries]
        if static:
            best = max(static, key=lambda summary: summary.hypervolume[plane].mean)
            reached = best.hypervolume[plane]
            apart = "apart from it" if area.low > reached.high else "not apart from it"
            parts.append(f"the best static weights' is {reached.text('.0f')}")
            if min(ours.seeds, best.seeds) > 1:
                parts[-1] += f", {apart}"
            else:
                parts.append("one seed gives no interval")
        lines.append("; ".join(parts))
    return lines


def write_report(study: StudyConfig, config: Config, results: Sequence[Result], out: Path) -> tuple[Table, list[str]]:
    """Write table.md, summary.json and the figures to the study's folder.

    Returns:
        The table (mean changes over the base, in per cent except for guards, and hypervolumes; table.md has the
        intervals) and the verdict.
    """
    planes, guards = axes_of(config), guards_of(config)
    rows = by_row(study, results)
    summaries = summarise(rows, planes, guards)
    lines = [*_uneven_bases(rows), *verdict(study, summaries, planes)]
    scores = list(next(iter(summaries.values())).gains)
    headings = ["row", "seeds", *(score if score in guards else f"{score} %" for score in scores)]
    headings += [f"hypervolume ({plane})" for plane in planes]
    cells = [
        [markdown_text(name), str(summary.seeds), *(summary.gains[score].text() for score in scores)]
        + [summary.hypervolume[plane].text(".0f") for plane in planes]
        for name, summary in summaries.items()
    ]
    write_bytes(out / "table.md", (markdown_table(headings, cells) + "\n").encode())
    static = {plane: front_hypervolume(rows, study.front, axes) for plane, axes in planes.items()}
    summary = {
        "rows": {name: asdict(row) for name, row in summaries.items()},
        "hypervolume of all static weights together": {
            plane: None if estimate is None else asdict(estimate) for plane, estimate in static.items()
        },
        "verdict": lines,
    }
    write_json(out / "summary.json", summary)
    for plane, axes in planes.items():
        _plane(out / f"plane-{plane}.png", study, rows, axes, plane)
    panels = {
        score: {name: [r.curves[score] for r in found if score in r.curves] for name, found in rows.items()}
        for score in next(iter(rows.values()))[0].curves
    }
    highlight = [name for name in dict.fromkeys([*study.grid, study.ours]) if name in rows]
    seconds = read_seconds(out)
    write_bytes(out / "progress.md", (progress(rows, planes, seconds) + "\n").encode())
    known = seconds if seconds.keys() >= rows.keys() else None
    learning_curves(out / "curves.png", panels, study.title, highlight=highlight, absolute=guards, seconds=known)
    _quadrants(out / "quadrants.png", rows)
    if (out / GRADIENTS).exists():
        draw_gradients(out / "gradients.png", read_evidence(out / GRADIENTS))
    _grid(out / "grid.png", study, config, out, rows)
    return _table(study.title, headings, [[cell.partition(" [")[0] for cell in row] for row in cells]), lines


def gradients_tables(evidence: Evidence) -> tuple[Table, Table]:
    """Return the values of gradients.png without intervals: agreement of the roles, and signal with learned weights."""
    where, steps = evidence.at or "the base", next(iter(evidence.cosines.values()))
    first = {"step": [str(at.step) for at in steps], "sigma": [f"{at.sigma:.2f}" for at in steps]}

    def values(label: str, curves: Mapping[str, Sequence[AtStep]]) -> dict[str, list[str]]:
        return {f"{label}, {name}": [f"{at.value:+.4f}" for at in curve] for name, curve in curves.items()}

    weights = {
        f"learned weight, {role}": [f"{at.weight:.2f}" for at in curve] for role, curve in evidence.strengths.items()
    }
    agreement = first | values("cosine", evidence.cosines) | values("agreement / noise", evidence.agreements)
    signal = first | values("signal / noise", evidence.strengths) | weights
    return (
        _table(f"Agreement of the two roles' gradients at {where}", agreement, zip(*agreement.values(), strict=True)),
        _table(f"Signal of each role's gradient at {where}", signal, zip(*signal.values(), strict=True)),
    )


def _table(title: str, headings: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*(Column(heading, overflow="fold") for heading in headings), title=title)
    for row in rows:
        table.add_row(*row)
    return table


def _uneven_bases(rows: Rows) -> list[str]:
    """Return a warning if the rows' bases differ by more than rounding: the model, data or a scorer has changed."""
    found = [result for results in rows.values() for result in results]
    uneven = {
        result.row
        for result in found
        for name, value in result.base.items()
        if abs(value - found[0].base.get(name, value)) > _SAME_BASE
    }
    return [f"not the same base as {found[0].row}'s: {', '.join(sorted(uneven))}; run them again"] if uneven else []


def _plane(path: Path, study: StudyConfig, rows: Rows, axes: tuple[str, str], plane: str) -> None:
    points: dict[str, Point] = {}
    intervals: dict[str, Interval] = {}
    for name, found in rows.items():
        x, y = (Estimate.of([r.tuned[axis] for r in found]) for axis in axes)
        points[name], intervals[name] = (x.mean, y.mean), (x.bounds, y.bounds)
    base = next(iter(rows.values()))[0].base
    points["base"] = (base[axes[0]], base[axes[1]])
    static = [points[name] for name in study.front if name in points]
    title, joined = f"{study.title}: {plane}", static if len(static) > 1 else None
    identity_prompt_plane(path, points, intervals, title, joined, arrow=("base", study.ours), labels=axes)


def _quadrants(path: Path, rows: Rows) -> None:
    shares = {"independent noise": NOISE_SHARES, "the paper": PAPER_SHARES}
    for name, found in rows.items():
        conflicted, positive, negative = (
            100 * sum(r.logged[f"share/{kind}"] for r in found) / len(found)
            for kind in ("conflicted", "both_positive", "both_negative")
        )
        shares[name] = (conflicted, positive, negative)
    quadrant_bars(path, shares)


def _grid(path: Path, study: StudyConfig, config: Config, out: Path, rows: Rows) -> None:
    """Draw reference, base and the chosen rows from the same noise, all of one seed: the first that most rows have."""
    seeds = sorted({result.seed for name in study.grid for result in rows.get(name, ())})
    columns = max((_grid_columns(study, config, out, rows, seed) for seed in seeds), key=len, default={})
    if columns:
        evaluation_grid(path, open_dataset(config.evaluation.data), config.evaluation.images, columns)


def _grid_columns(study: StudyConfig, config: Config, out: Path, rows: Rows, seed: int) -> dict[str, Evaluation]:
    """Return base and rows of that seed whose images are in the study's folder."""
    columns: dict[str, Evaluation] = {}
    for name in study.grid:
        if not any(result.seed == seed for result in rows.get(name, ())):
            continue  # images of an unfinished run are of some iteration before its last
        folder = out / slug(name) / f"seed-{seed}/evaluation"
        base = read_evaluation(folder / "base", config.evaluation)
        tuned = read_evaluation(folder / "tuned", config.evaluation)
        if base is not None and tuned is not None:
            columns.setdefault("base", base)
            columns[name] = tuned
    return columns
