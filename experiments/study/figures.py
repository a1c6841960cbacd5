"""Figures of a study: learning curves, signs of the advantages, and gradients of the two roles."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from customized_grpo.figures.style import (
    BOTH_NEGATIVE,
    BOTH_POSITIVE,
    CONFLICTED,
    GREY,
    IDENTITY,
    INK,
    PALETTE,
    PROMPT,
    FigureError,
    drawing,
    grid_shape,
    integer_ticks,
)
from experiments.study.gradients import AtStep, Evidence

Curve = Sequence[tuple[int, float]]
"""(iteration, score) of one seed; iteration 0 is the base model."""
Shares = tuple[float, float, float]
"""(conflicted, both positive, both negative) in percent."""

_SIGNS = {"conflicted": CONFLICTED, "both positive": BOTH_POSITIVE, "both negative": BOTH_NEGATIVE}
_NARROW = 4.5  # percent: a narrower bar has no space for its number
_ROLES = {"identity": IDENTITY, "prompt": PROMPT}
_MOST_TICKS = 26
_OTHER: dict[str, Any] = {"color": GREY, "linestyle": "-", "linewidth": 0.9, "zorder": 2}  # of a row without highlight


def learning_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[Curve]]],
    title: str | None = None,
    *,
    highlight: Collection[str] | None = None,
    absolute: Collection[str] = (),
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Plot held-out scores over the iterations, or over time: a panel for each metric, a line for each row.

    A line is the mean over the row's seeds, with a band from the lowest to the highest seed, at the iterations that all
    its seeds have. Scores are changes in percent of the seed's own base.

    Args:
        path: PNG file to write.
        panels: metric -> row -> seeds -> (iteration, score).
        title: Title of the figure.
        highlight: Rows in color; the others are thin and grey. None: all rows.
        absolute: Metrics whose scores are shown unchanged.
        seconds: Seconds of an iteration by row, for all rows: scores are plotted over minutes.

    Raises:
        FigureError: There is no row, or the seeds of a row share no iteration.
    """
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    if not rows:
        raise FigureError(f"{path}: there is no curve to show")
    styles = [
        {"color": color, "linestyle": style, "linewidth": 2.2, "zorder": 3}
        for style in ("-", "--", ":", "-.")
        for color in PALETTE
    ]
    looks = dict(zip((row for row in rows if highlight is None or row in highlight), cycle(styles), strict=False))
    lines, columns = grid_shape(len(panels))
    width = max(6.0, 4.2 * columns)
    legend_columns = max(1, int((width - 0.4) / (0.6 + 0.075 * max(map(len, rows)))))
    entries = len(looks) + (len(looks) < len(rows))
    with drawing(path, width, 3.2 * lines + 0.2 * math.ceil(entries / legend_columns), title) as figure:
        for place, (metric, panel) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(lines, columns, place)
            axes.set_title(metric[:1].upper() + metric[1:])
            axes.set_ylabel("score" if metric in absolute else "change over the base (%)")
            axes.set_xlabel("iteration" if seconds is None else "minutes of training")
            if metric not in absolute:
                axes.axhline(0, color=INK, linewidth=0.8)
            for row, seeds in panel.items():
                at, scores = on_shared_iterations(f"{path}: {metric}, {row}", seeds, relative=metric not in absolute)
                look, marker = looks.get(row, _OTHER), "o" if len(at) == 1 else ""
                places = at if seconds is None else [iteration * seconds[row] / 60 for iteration in at]
                axes.plot(places, scores.mean(0), marker=marker, label=row, **look)
                if row in looks:
                    low, high = scores.min(0), scores.max(0)
                    axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
            if seconds is None:
                integer_ticks(axes)
        handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
        shown = {row: handles[row] for row in looks}
        if others := [row for row in rows if row not in looks]:
            shown[f"{len(others)} other row{'s' * (len(others) > 1)}"] = handles[others[0]]
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=legend_columns)


def quadrant_bars(path: Path, shares: Mapping[str, Shares]) -> None:
    """Plot how often the two advantages agree in each row, as stacked bars.

    Args:
        path: PNG file to write.
        shares: (conflicted, both positive, both negative) in percent of each row. The rest to 100 is "no signal".
    """
    values = np.array(list(shares.values()), dtype=np.float64)
    rest = np.clip(100 - values.sum(1), 0, None)
    places = np.arange(len(values))
    with drawing(path, 6.8, 1.3 + 0.32 * len(values)) as figure:
        axes = figure.add_subplot()
        for (label, color), part, end in zip(_SIGNS.items(), values.T, values.cumsum(1).T, strict=True):
            bars = axes.barh(places, part, left=end - part, height=0.76, color=color, edgecolor="white", label=label)
            numbers = [f"{share:.1f}" if share >= _NARROW else "" for share in part]
            axes.bar_label(bars, numbers, label_type="center", fontsize=8)
        if (rest > 0.5).any():  # published shares are rounded
            bars = axes.barh(places, rest, left=100 - rest, height=0.76, color="white", label="no signal")
            for bar in bars:
                bar.set(edgecolor=GREY, hatch="////")
        axes.set_yticks(places, list(shares))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of images (%)")
        figure.legend(loc="outside lower center", ncols=4)


def draw_gradients(path: Path, evidence: Evidence) -> None:
    """Plot the relation of the identity and the prompt gradient at each denoising step to a PNG file."""
    panels: dict[str, Mapping[str, Sequence[AtStep]]] = {
        "cosine of the two gradients": evidence.cosines,
        "agreement / noise": evidence.agreements,
        "signal / noise of a gradient, one iteration": evidence.strengths,
    }
    steps = len(next(iter(evidence.cosines.values())))
    # Curves of both roles have neither role's color.
    others = cycle(color for color in PALETTE if color not in _ROLES.values())
    colors = dict(zip(evidence.cosines, others, strict=False)) | _ROLES
    width = min(12.0, max(5.6, 1.4 + 0.42 * steps))
    with drawing(path, width, 0.4 + 3.4 * len(panels), evidence.at or None) as figure:
        for axes, (label, curves) in zip(figure.subplots(len(panels)), panels.items(), strict=True):
            _plot_steps(axes, curves, colors)
            axes.set_ylabel(label)


def _plot_steps(axes: Axes, curves: Mapping[str, Sequence[AtStep]], colors: Mapping[str, str]) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    for i, (name, curve) in enumerate(curves.items()):
        sigmas, value, low, high = np.array([(at.sigma, at.value, at.low, at.high) for at in curve]).T
        xs = np.arange(len(sigmas)) + 0.12 * (i - (len(curves) - 1) / 2)  # side by side: no bar covers another
        color = colors[name]
        axes.vlines(xs, low, high, color=color, linewidth=1.2, alpha=0.8)
        axes.plot(xs, np.stack([low, high], 1), "_", color=color, markersize=6)
        axes.plot(xs, value, color=color, marker="o", markersize=4.5, label=name)
    ticks = range(0, len(sigmas), math.ceil(len(sigmas) / _MOST_TICKS))
    axes.set_xticks(list(ticks), [f"{t}\n{sigmas[t]:.2f}" for t in ticks])
    axes.set_xlim(-0.6, len(sigmas) - 0.4)
    axes.set_xlabel("denoising step t (0 is the noisiest), and below it its noise level sigma")
    axes.legend(loc="best", ncols=min(4, len(curves)))


def on_shared_iterations(where: str, seeds: Sequence[Curve], *, relative: bool) -> tuple[list[int], np.ndarray]:
    """Return the iterations that all seeds have, and their scores there, (seeds, iterations)."""
    found = [dict(curve) for curve in seeds]
    shared = sorted(set.intersection(*map(set, found))) if found else []
    if not shared or (relative and not all(scores.get(0) for scores in found)):
        raise FigureError(f"{where}: the seeds share no iteration, or have no score of the base at iteration 0")
    table = np.array([[scores[at] for at in shared] for scores in found])
    if relative:
        base = np.array([[scores[0]] for scores in found])
        table = 100 * (table - base) / np.abs(base)
    return shared, table
