"""Models on the plane of identity and prompt, where the paper shows competition and synergy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from customized_grpo.figures.canvas import (
    BASE,
    GREY,
    INK,
    PALETTE,
    SKY,
    TUNED,
    FigureError,
    drawing,
)

Point = tuple[float, float]
"""(identity, prompt)."""
Interval = tuple[tuple[float, float], tuple[float, float]]
"""((identity low, high), (prompt low, high)), bounds rather than half widths."""

_MARKER = 9  # points across
_NAMED = 8  # points of a journey that bear their names


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
    """Draw named models by their two scores, PNG. Up and to the right is better.

    Args:
        path: the PNG to write; its folder is made.
        points: (identity, prompt) of each model by its name; names are placed clear of each other.
        intervals: of some of the points, drawn as crosses.
        title: a line over all.
        front: points that one model reaches by a knob, joined in the order given.
        arrow: the two points that an arrow joins, where both are there.
        labels: what the axes show.

    Raises:
        FigureError: if there is no point, a coordinate is not finite, or an interval names a point
            that is not there or does not hold it in order.
    """
    _check(path, points, intervals or {}, front or ())
    with drawing(path, 6.0, 5.0, title) as figure:
        axes = figure.add_subplot()
        _draw_plane(figure, axes, points, intervals or {}, front or (), arrow, labels, _colours(points, arrow))


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
    """Draw measured models on one plane and published ones on another of its own scales, PNG.

    Two planes, because scores of other encoders lie on other scales: only where points of one plane stand to each
    other can be read.

    Args:
        path: the PNG to write; its folder is made.
        points, intervals, labels: what was measured, as for :func:`identity_prompt_plane`.
        published: (identity, prompt) of models by others.
        published_labels: what those axes show.
        titles: of the two planes.
        caveat: a line below both.

    Raises:
        FigureError: as for :func:`identity_prompt_plane`.
    """
    _check(path, points, intervals, ())
    _check(path, published, {}, ())
    nobody = ("", "")
    with drawing(path, 11.0, 5.2) as figure:
        figure.supxlabel(caveat, fontsize=8, color=INK)
        left, right = figure.subplots(1, 2)
        left.set_title(titles[0])
        right.set_title(titles[1])
        _draw_plane(figure, left, points, intervals, (), nobody, labels, _colours(points, nobody))
        _draw_plane(figure, right, published, {}, (), nobody, published_labels, dict.fromkeys(published, GREY))


def _draw_plane(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, Point],
    intervals: Mapping[str, Interval],
    front: Sequence[Point],
    arrow: tuple[str, str],
    labels: tuple[str, str],
    colours: Mapping[str, str],
) -> None:
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel(f"{labels[0]} (higher is better)")
    axes.set_ylabel(f"{labels[1]} (higher is better)")
    _limits(axes, points, intervals, front)
    if front:
        xs, ys = zip(*front, strict=True)
        axes.plot(xs, ys, color=GREY, linestyle="--", marker=".", linewidth=1.2, zorder=1)
    for name, ((x0, x1), (y0, y1)) in intervals.items():
        x, y = points[name]
        style: dict[str, Any] = {
            "color": colours[name],
            "linewidth": 1.2,
            "alpha": 0.7,
            "zorder": 2,
        }
        axes.plot([x0, x1], [y, y], **style)
        axes.plot([x, x], [y0, y1], **style)
    for name, (x, y) in points.items():
        axes.plot(
            x,
            y,
            "o",
            color=colours[name],
            markersize=_MARKER,
            markeredgecolor="white",
            zorder=4,
        )
    start, end = arrow
    joined = start in points and end in points and points[start] != points[end]
    if joined:
        axes.annotate(
            "",
            xy=points[end],
            xytext=points[start],
            arrowprops={
                "arrowstyle": "-|>",
                "color": INK,
                "linewidth": 1.4,
                "shrinkA": _MARKER * 0.7,
                "shrinkB": _MARKER * 0.7,
            },
            zorder=3,
        )
    segments = [(points[start], points[end])] if joined else []
    for name, ((x0, x1), (y0, y1)) in intervals.items():
        x, y = points[name]
        segments += [((x0, y), (x1, y)), ((x, y0), (x, y1))]
    segments += list(pairwise(front))
    _place_names(figure, axes, points, segments)


def journey(path: Path, points: Mapping[str, Point], labels: tuple[str, str] = ("identity", "prompt")) -> None:
    """Draw where one model has been on the plane, from the first point to the last; PNG, or SVG by the name.

    Arguments and FigureError as for :func:`identity_prompt_plane`; every other name is left out where there are
    many, the first and the last never.
    """
    _check(path, points, {}, ())
    names, at = list(points), list(points.values())
    with drawing(path, 4.4, 3.7) as figure:
        axes = figure.add_subplot()
        axes.ticklabel_format(useOffset=False)
        axes.set_xlabel(f"{labels[0]} (higher is better)")
        axes.set_ylabel(f"{labels[1]} (higher is better)")
        _limits(axes, points, {}, ())
        axes.axvline(at[0][0], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.axhline(at[0][1], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        for start, end in pairwise(at):
            axes.annotate(
                "", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.2}, zorder=2
            )
        for i, (x, y) in enumerate(at):
            ends = i in (0, len(at) - 1)
            colour = (BASE if i == 0 else TUNED) if ends else SKY
            axes.plot(x, y, "o", color=colour, markersize=_MARKER if ends else 6, zorder=3)
        every = math.ceil(len(names) / _NAMED)
        kept = {n: points[n] for i, n in enumerate(names) if i % every == 0 or i == len(names) - 1}
        _place_names(figure, axes, kept, list(pairwise(at)))


def _check(
    path: Path,
    points: Mapping[str, Point],
    intervals: Mapping[str, Interval],
    front: Sequence[Point],
) -> None:
    if not points:
        raise FigureError(f"{path}: no point to draw; give at least one")
    for name, point in [*points.items(), *(("front", point) for point in front)]:
        if not all(math.isfinite(value) for value in point):
            raise FigureError(f"{path}: {name} lies at {point}; give finite scores")
    for name, bounds in intervals.items():
        if name not in points:
            raise FigureError(f"{path}: an interval for {name!r}, which is no point; name a point")
        for value, (low, high) in zip(points[name], bounds, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= value <= high):
                raise FigureError(f"{path}: {name!r} lies at {value}, outside its interval {low}..{high}")


def _colours(points: Mapping[str, Point], arrow: tuple[str, str]) -> dict[str, str]:
    free = cycle(colour for colour in PALETTE if colour != TUNED)
    special = {arrow[0]: BASE, arrow[1]: TUNED}
    return {name: special.get(name) or next(free) for name in points}


def _limits(
    axes: Axes,
    points: Mapping[str, Point],
    intervals: Mapping[str, Interval],
    front: Sequence[Point],
) -> None:
    """Room round everything, and for names: a fifth of the span on each side."""
    for coordinate, set_limits in ((0, axes.set_xlim), (1, axes.set_ylim)):
        values = [point[coordinate] for point in [*points.values(), *front]]
        values += [bound for interval in intervals.values() for bound in interval[coordinate]]
        low, high = min(values), max(values)
        room = 0.2 * (high - low) or 0.05 * abs(high) or 1.0
        set_limits(low - room, high + room)


def _place_names(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, Point],
    segments: Sequence[tuple[Point, Point]],
) -> None:
    """Write each name beside its point: the nearest place where it covers nothing else.

    Greedy, in the order of the points. Where no place is free, the one that covers least.
    """
    figure.draw_without_rendering()  # the layout is settled from here on
    pixels = figure.dpi / 72
    to_pixels = axes.transData.transform
    radius = (_MARKER / 2 + 1) * pixels
    taken = [_around(to_pixels(point), radius) for point in points.values()]
    for start, end in segments:
        (x0, y0), (x1, y1) = to_pixels(start), to_pixels(end)
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / radius))
        taken += [_around(at, pixels) for at in np.linspace((x0, y0), (x1, y1), count)]
    frame = axes.get_window_extent()
    for name, point in points.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset pixels", fontsize=9, zorder=5)
        text.set_in_layout(False)
        size = text.get_window_extent()
        box, offset = min(
            _candidates(to_pixels(point), size.width, size.height, radius),
            key=lambda candidate: _covered(candidate[0], taken, frame),
        )
        taken.append(box.padded(radius / 2))  # two names side by side should not read as one
        text.set_position(offset)
        if _distance(box, to_pixels(point)) > 2.5 * radius:
            nearest = np.clip(to_pixels(point), box.min, box.max)
            line = axes.transData.inverted().transform([to_pixels(point), nearest])
            axes.plot(line[:, 0], line[:, 1], color=GREY, linewidth=0.7, zorder=2)


def _candidates(
    at: np.ndarray, width: float, height: float, radius: float
) -> Iterator[tuple[Bbox, tuple[float, float]]]:
    """Boxes for a name and their lower left corners relative to the point, the nearest first."""
    pad = radius / 3
    for reach in (1.0, 2.5, 4.5, 7.0, 10.0):
        gap = radius * reach + pad
        for angle in (0, 90, 270, 180, 45, 315, 135, 225):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = dx * gap + (dx - 1) * width / 2
            y = dy * gap + (dy - 1) * height / 2
            yield Bbox.from_bounds(at[0] + x, at[1] + y, width, height), (x, y)


def _covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Square pixels that the box shares with others or has outside the frame."""
    inside = Bbox.intersection(box, frame)
    outside = box.width * box.height - (inside.width * inside.height if inside else 0.0)
    shared = (Bbox.intersection(box, other) for other in taken)
    return float(outside + sum(part.width * part.height for part in shared if part is not None))


def _around(at: np.ndarray, radius: float) -> Bbox:
    return Bbox.from_bounds(at[0] - radius, at[1] - radius, 2 * radius, 2 * radius)


def _distance(box: Bbox, at: np.ndarray) -> float:
    return float(np.linalg.norm(np.clip(at, box.min, box.max) - at))
