"""Models on the plane of identity score and prompt score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from customized_grpo.figures.style import BASE, GREY, INK, PALETTE, SKY, TUNED, FigureError, drawing

Point = tuple[float, float]
"""(identity, prompt)."""
Interval = tuple[tuple[float, float], tuple[float, float]]
"""((identity low, high), (prompt low, high)): bounds, not half widths."""

_MARKER = 9  # points
_NAMED = 8  # stations of a journey that have a label


def identity_prompt_plane(
    path: Path,
    points: Mapping[str, Point],
    intervals: Mapping[str, Interval] | None = None,
    title: str | None = None,
    front: Sequence[Point] | None = None,
    *,
    arrow: tuple[str, str] = ("base", "tuned"),
    labels: tuple[str, str] = ("identity score", "prompt score"),
) -> None:
    """Plot models by their two scores. Up and to the right is better.

    Args:
        path: PNG file to write.
        points: (identity, prompt) of each model by its name.
        intervals: Confidence intervals of some of the points, shown as crosses.
        title: Title of the figure.
        front: Points that one model reaches with different settings, joined in the given order.
        arrow: Names of two points that an arrow joins, if both exist.
        labels: Names of the scores.

    Raises:
        FigureError: There is no point, or a score is not finite.
    """
    with drawing(path, 6.0, 5.0, title) as figure:
        _draw(figure.add_subplot(), points, labels, intervals or {}, front or (), arrow)


def planes_side_by_side(
    path: Path,
    points: Mapping[str, Point],
    intervals: Mapping[str, Interval],
    published: Mapping[str, Point],
    *,
    labels: tuple[str, str],
    published_labels: tuple[str, str],
    titles: tuple[str, str],
    caveat: str,
) -> None:
    """Plot measured and published models on two planes, because their scores have different scales.

    Args:
        path: PNG file to write.
        points: Measured models, as for :func:`identity_prompt_plane`.
        intervals: Confidence intervals of measured models.
        published: (identity, prompt) of published models.
        labels: Names of the measured scores.
        published_labels: Names of the published scores.
        titles: Titles of the two planes.
        caveat: A line below both planes.

    Raises:
        FigureError: A plane has no point, or a score is not finite.
    """
    with drawing(path, 11.0, 5.2) as figure:
        figure.supxlabel(caveat, fontsize=8)
        left, right = figure.subplots(1, 2)
        left.set_title(titles[0])
        right.set_title(titles[1])
        _draw(left, points, labels, intervals)
        _draw(right, published, published_labels, colors=dict.fromkeys(published, GREY))


def draw_journey(axes: Axes, points: Mapping[str, Point], labels: tuple[str, str]) -> None:
    """Plot where one model has been, from the first point to the last. If there are many, only some get a label."""
    names = list(points)
    first, last = names[0], names[-1]
    every = math.ceil(len(names) / _NAMED)
    axes.axvline(points[first][0], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.axhline(points[first][1], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    colors = dict.fromkeys(names, SKY) | {last: TUNED, first: BASE}
    _draw(axes, points, labels, arrow=names, colors=colors, named={*names[::every], last})


def _draw(
    axes: Axes,
    points: Mapping[str, Point],
    labels: tuple[str, str],
    intervals: Mapping[str, Interval] | None = None,
    front: Sequence[Point] = (),
    arrow: Sequence[str] = (),
    *,
    colors: Mapping[str, str] | None = None,
    named: set[str] | None = None,
) -> None:
    intervals = intervals or {}
    shown = [*points.values(), *front]
    if not points or not np.isfinite(shown).all():
        raise FigureError(f"{' and '.join(labels)}: scores of {', '.join(points) or 'no model'} are not all finite")
    if colors is None:
        free = cycle(color for color in PALETTE if color != TUNED)
        special = dict(zip(arrow, (BASE, TUNED), strict=False))
        colors = {name: special.get(name) or next(free) for name in points}
    axes.set_xlabel(f"{labels[0]} (higher is better)")
    axes.set_ylabel(f"{labels[1]} (higher is better)")
    corners = np.array([*shown, *(corner for interval in intervals.values() for corner in zip(*interval, strict=True))])
    low, high = corners.min(0), corners.max(0)
    space = np.where(high > low, 0.2 * (high - low), np.maximum(0.05 * np.abs(high), 1e-3))  # for the labels
    axes.set_xlim(low[0] - space[0], high[0] + space[0])
    axes.set_ylim(low[1] - space[1], high[1] + space[1])

    segments = list(pairwise(front))
    if front:
        axes.plot(*zip(*front, strict=True), color=GREY, linestyle="--", marker=".", linewidth=1.2, zorder=1)
    for name, ((x0, x1), (y0, y1)) in intervals.items():
        x, y = points[name]
        for segment in (((x0, y), (x1, y)), ((x, y0), (x, y1))):
            axes.plot(*zip(*segment, strict=True), color=colors[name], linewidth=1.2, alpha=0.7, zorder=2)
            segments.append(segment)
    for start, end in pairwise(points[name] for name in arrow if name in points):
        style = {
            "arrowstyle": "-|>",
            "color": INK,
            "linewidth": 1.2,
            "shrinkA": _MARKER * 0.7,
            "shrinkB": _MARKER * 0.7,
        }
        axes.annotate("", xy=end, xytext=start, arrowprops=style, zorder=3)
        segments.append((start, end))
    for name, point in points.items():
        axes.plot(*point, "o", color=colors[name], markersize=_MARKER, markeredgecolor="white", zorder=4)
    _label(axes, {name: point for name, point in points.items() if named is None or name in named}, segments, shown)


def _label(
    axes: Axes, points: Mapping[str, Point], segments: Sequence[tuple[Point, Point]], shown: Sequence[Point]
) -> None:
    """Write each name near its point, where it covers least: greedily, in the order of the points."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # positions are final from here on
    radius = (_MARKER / 2 + 1) * figure.dpi / 72
    transform = axes.transData.transform
    along = [at for start, end in segments for at in np.linspace(transform(start), transform(end), 20)]
    taken = [np.concatenate([at - radius, at + radius]) for at in transform(shown)]
    taken += [np.concatenate([at - radius / 3, at + radius / 3]) for at in along]
    frame = np.array([axes.get_window_extent().extents])
    angles = np.radians((0, 90, 270, 180, 45, 315, 135, 225))
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    for name, point in points.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset pixels", zorder=5)
        text.set_in_layout(False)
        size, center = np.array(text.get_window_extent().size), transform(point)
        near = [directions * radius * reach + (directions - 1) * size / 2 for reach in (1.3, 2.8, 4.8, 7.3)]
        offsets = np.concatenate(near)
        places = np.concatenate([center + offsets, center + offsets + size], 1)
        outside = size.prod() - _overlap(places, frame)
        covered = _overlap(places, np.stack(taken)) + outside
        best = int(np.argmin(covered.round(3)))  # the nearest of those that cover equally little
        text.set_position(tuple(offsets[best]))
        # Two names side by side should not read as one.
        taken.append(places[best] + radius / 2 * np.array([-1, -1, 1, 1]))
        nearest = np.clip(center, places[best, :2], places[best, 2:])
        if np.linalg.norm(nearest - center) > 2.5 * radius:
            line = axes.transData.inverted().transform([center, nearest])
            axes.plot(*line.T, color=GREY, linewidth=0.7, zorder=2)


def _overlap(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area that each box, (N, 4) of x0, y0, x1, y1, shares with the others, (M, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared: NDArray[np.float64] = np.clip(high - low, 0, None).prod(-1).sum(1)
    return shared
