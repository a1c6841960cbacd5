"""Rows of a study side by side: held-out scores while training, and the signs of their advantages."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from customized_grpo.figures.canvas import (
    BOTH_NEGATIVE,
    BOTH_POSITIVE,
    CONFLICTED,
    GREY,
    INK,
    PALETTE,
    FigureError,
    drawing,
    whole_numbers,
)

Curve = Sequence[tuple[int, float]]
"""(iteration, score) of one seed; iteration 0 is the base."""
Panels = Mapping[str, Mapping[str, Sequence[Curve]]]
"""Curves by the metric, by the row, one for each seed."""
Shares = tuple[float, float, float]
"""(conflicted, both positive, both negative), each in 0..100 per cent."""

_Style = Literal["-", "--", ":", "-."]
_STYLES: tuple[_Style, ...] = ("-", "--", ":", "-.")  # of the rows that share a colour, in turn
_SIGNS = (("conflicted", CONFLICTED), ("both positive", BOTH_POSITIVE), ("both negative", BOTH_NEGATIVE))
_ROUNDING = 0.5  # per cent by which published shares may miss 100
_NARROW = 4.5  # per cent: the least that has room for a number


class _Look(NamedTuple):
    colour: str
    style: _Style


class _Mean(NamedTuple):
    """Of one row in one panel, each (iterations,): where, and over the seeds the mean, the least and the most."""

    at: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def learning_curves(
    path: Path,
    panels: Panels,
    title: str | None = None,
    *,
    highlight: Collection[str] | None = None,
    absolute: Collection[str] = (),
) -> None:
    """Draw how the held-out scores of several rows move while they are trained, PNG.

    One panel for each metric; in it one line for each row, the mean over its seeds, with a band from
    its lowest to its highest seed. A row is drawn at the iterations that all its seeds have, so that
    no step in its line comes from a seed that drops out. Scores are shown in per cent of change over
    the seed's own base.

    Args:
        path: the PNG to write; its folder is made.
        panels: metric -> row -> seeds -> (iteration, score). A panel need not have all rows.
        title: a line over all.
        highlight: rows in colour; the others are thin, grey, and without a band. All where None.
        absolute: metrics whose scores are shown as they are.

    Raises:
        FigureError: if a panel, row or seed is empty, a score is not finite, an iteration comes twice,
            the seeds of a row share no iteration, a curve shown in per cent has no base at iteration 0
            or one of zero, or `highlight` or `absolute` holds a name that is not there.
    """
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    if not rows:
        raise FigureError(f"{path}: no curve to draw; give at least one")
    _known(path, "absolute", absolute, panels)
    _known(path, "highlight", highlight or (), rows)
    means = {
        metric: {
            row: _mean(f"{path}: {metric}, {row!r}", seeds, relative=metric not in absolute)
            for row, seeds in panel.items()
        }
        for metric, panel in panels.items()
    }
    for metric, panel in means.items():
        if not panel:
            raise FigureError(f"{path}: {metric} has no row; give at least one or leave it out")
    looks = _looks([row for row in rows if highlight is None or row in highlight])
    handles: list[Artist] = [
        Line2D([], [], color=look.colour, linestyle=look.style, linewidth=2.2) for look in looks.values()
    ]
    labels = list(looks)
    others = len(rows) - len(looks)
    if others:
        handles.append(Line2D([], [], color=GREY, linewidth=0.9))
        labels.append("1 other row" if others == 1 else f"{others} other rows")

    # Three to a row, or two where that leaves fewer empty places.
    columns = min(len(panels), min((3, 2), key=lambda count: -len(panels) % count))
    lines = math.ceil(len(panels) / columns)
    width = max(6.0, 4.2 * columns)
    legend_columns = _legend_columns(labels, width)
    height = 3.2 * lines + 0.2 * math.ceil(len(labels) / legend_columns)
    with drawing(path, width, height, title) as figure:
        for place, (metric, panel) in enumerate(means.items(), start=1):
            axes = figure.add_subplot(lines, columns, place)
            _panel(axes, metric, panel, looks, relative=metric not in absolute)
        _legend_below(figure, handles, labels, legend_columns)


def quadrant_bars(path: Path, shares: Mapping[str, Shares], title: str | None = None) -> None:
    """Draw how often the two advantages agree in each row, as stacked bars, PNG.

    The numbers are written in the bars, save in a part too narrow for one. What a row lacks of 100 is
    shown as "no signal".

    Args:
        path: the PNG to write; its folder is made.
        shares: of each row by its name, from the top down: (conflicted, both positive, both negative)
            in per cent. References are rows like any other.
        title: a line over all.

    Raises:
        FigureError: if there is no row, or shares are not finite, below 0, above 100 together, or
            fractions of 1 rather than per cent.
    """
    if not shares:
        raise FigureError(f"{path}: no shares to draw; give at least one row")
    for name, parts in shares.items():
        within = all(math.isfinite(part) and part >= 0 for part in parts) and sum(parts) <= 100 + _ROUNDING
        if len(parts) != len(_SIGNS) or not within:
            raise FigureError(f"{path}: shares of {name!r} are {parts}; give three of 0 to 100, 100 together")
        if 0 < sum(parts) <= 1 + _ROUNDING / 100:
            raise FigureError(f"{path}: shares of {name!r} are {parts}, fractions of 1; give per cent")
    values = np.array(list(shares.values()), dtype=np.float64)
    lefts = np.cumsum(values, axis=1) - values
    places = np.arange(len(values))
    with drawing(path, 6.8, 1.3 + 0.32 * len(values), title) as figure:
        axes = figure.add_subplot()
        for (label, colour), part, left in zip(_SIGNS, values.T, lefts.T, strict=True):
            axes.barh(places, part, left=left, height=0.76, color=colour, edgecolor="white", linewidth=0.8, label=label)
            for place, (share, start) in enumerate(zip(part, left, strict=True)):
                if share >= _NARROW:
                    axes.text(start + share / 2, place, f"{share:.1f}", ha="center", va="center_baseline", fontsize=8)
        rest = np.clip(100 - values.sum(axis=1), 0, None)
        if (rest > _ROUNDING).any():
            axes.barh(
                places,
                rest,
                left=100 - rest,
                height=0.76,
                color="white",
                edgecolor=GREY,
                hatch="////",
                label="no signal",
            )
        axes.set_yticks(places, list(shares))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of images (%)")
        handles, labels = axes.get_legend_handles_labels()
        _legend_below(figure, handles, labels, len(labels))


def _known(path: Path, what: str, names: Collection[str], there: Collection[str]) -> None:
    for name in names:
        if name not in there:
            raise FigureError(
                f"{path}: {what} holds {name!r}, of which there is no curve; give one of {', '.join(there)}"
            )


def _mean(where: str, seeds: Sequence[Curve], *, relative: bool) -> _Mean:
    """Over the seeds of one row, at the iterations that they share. Raises FigureError, begun by `where`."""
    scores: list[dict[int, float]] = []
    for number, curve in enumerate(seeds, start=1):
        found = dict(curve)
        if len(found) != len(curve):
            raise FigureError(f"{where}, seed {number} of {len(seeds)}: an iteration comes twice")
        if not all(math.isfinite(score) for score in found.values()):
            raise FigureError(f"{where}, seed {number} of {len(seeds)}: a score is not finite")
        if relative:
            base = found.get(0)
            if not base:
                problem = "has no score at iteration 0" if base is None else "is zero at iteration 0"
                raise FigureError(f"{where}, seed {number} of {len(seeds)}: {problem}; no change in % can be told")
            found = {at: 100 * (score - base) / abs(base) for at, score in found.items()}
        scores.append(found)
    shared = sorted(set.intersection(*(set(found) for found in scores))) if scores else []
    if not shared:
        raise FigureError(f"{where}: no iteration that all of the {len(seeds)} seeds have; give at least one")
    table = np.array([[found[at] for at in shared] for found in scores], dtype=np.float64)
    return _Mean(np.array(shared, dtype=np.float64), table.mean(axis=0), table.min(axis=0), table.max(axis=0))


def _looks(rows: Sequence[str]) -> dict[str, _Look]:
    """Of the rows in colour, each different for up to 24 of them."""
    count = len(PALETTE)
    return {row: _Look(PALETTE[i % count], _STYLES[i // count % len(_STYLES)]) for i, row in enumerate(rows)}


def _panel(axes: Axes, metric: str, panel: Mapping[str, _Mean], looks: Mapping[str, _Look], *, relative: bool) -> None:
    axes.set_title(metric[:1].upper() + metric[1:])
    axes.set_ylabel("change over the base (%)" if relative else "score")
    axes.set_xlabel("iteration")
    if relative:
        axes.axhline(0, color=INK, linewidth=0.8)
    for row, line in panel.items():
        marker = "o" if len(line.at) == 1 else ""
        if row not in looks:
            axes.plot(line.at, line.mean, color=GREY, linewidth=0.9, marker=marker, markersize=3, zorder=2, label=row)
            continue
        colour, style = looks[row]
        axes.fill_between(line.at, line.low, line.high, color=colour, alpha=0.15, linewidth=0, zorder=1.5)
        axes.plot(
            line.at,
            line.mean,
            color=colour,
            linestyle=style,
            linewidth=2.2,
            marker=marker,
            markersize=5,
            zorder=3,
            label=row,
        )
    whole_numbers(axes)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """How many entries stand side by side in `width` inches."""
    entry = 0.6 + 0.075 * max(len(label) for label in labels)  # the line, its gaps, and letters of 8 points
    return max(1, min(len(labels), int((width - 0.4) / entry)))


def _legend_below(figure: Figure, handles: list[Artist], labels: list[str], columns: int) -> None:
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
