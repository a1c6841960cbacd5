"""Models on the plane of identity score and prompt score."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from customized_grpo.figures.style import BASE, GREY, INK, PALETTE, SKY, TUNED, FigureError, drawing

Point = tuple[float, float]
"""(identity, prompt)."""
Interval = tuple[tuple[float, float], tuple[float, float]]
"""((identity low, high), (prompt low, high)): bounds, not half widths."""


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

    `intervals` are crosses, `front` joins points that one model reaches with different settings, and `arrow` two
    points, if both exist. `labels` are the names of the scores. FigureError without a point, or if one is not finite.
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

    The arguments are those of :func:`identity_prompt_plane`, and a `caveat` below both planes.
    """
    with drawing(path, 11.0, 5.2) as figure:
        figure.supxlabel(caveat, fontsize=8)
        left, right = figure.subplots(1, 2)
        left.set_title(titles[0])
        right.set_title(titles[1])
        _draw(left, points, labels, intervals)
        _draw(right, published, published_labels)


def draw_journey(axes: Axes, points: Mapping[str, Point], labels: tuple[str, str]) -> None:
    """Plot where one model has been, from the first point to the last, which the legend names."""
    names = list(points)
    first, last = names[0], names[-1]
    axes.axvline(points[first][0], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.axhline(points[first][1], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    colors = dict.fromkeys(names, SKY) | {last: TUNED, first: BASE}
    _draw(axes, points, labels, arrow=names, colors=colors, named={first, last})


def _draw(
    axes: Axes,
    points: Mapping[str, Point],
    labels: tuple[str, str],
    intervals: Mapping[str, Interval] | None = None,
    front: Sequence[Point] = (),
    arrow: Sequence[str] = (),
    *,
    colors: Mapping[str, str] | None = None,
    named: Collection[str] | None = None,
) -> None:
    """Plot points and what belongs to them; those that are `named` (by default all) are in the legend."""
    if not points or not np.isfinite([*points.values(), *front]).all():
        raise FigureError(f"{' and '.join(labels)}: scores of {', '.join(points) or 'no model'} are not all finite")
    free = cycle(color for color in PALETTE if color != TUNED)
    special = dict(zip(arrow, (BASE, TUNED), strict=False))
    colors = colors or {name: special.get(name) or next(free) for name in points}
    axes.set_xlabel(f"{labels[0]} (higher is better)")
    axes.set_ylabel(f"{labels[1]} (higher is better)")
    if front:
        axes.plot(*zip(*front, strict=True), color=GREY, linestyle="--", marker=".", linewidth=1.2, zorder=1)
    for name, (xs, ys) in (intervals or {}).items():
        x, y = points[name]
        axes.plot(xs, (y, y), color=colors[name], linewidth=1.2, alpha=0.7, zorder=2)
        axes.plot((x, x), ys, color=colors[name], linewidth=1.2, alpha=0.7, zorder=2)
    for start, end in pairwise(points[name] for name in arrow if name in points):
        style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 6, "shrinkB": 6}
        axes.annotate("", xy=end, xytext=start, arrowprops=style, zorder=3)
    markers = {color: cycle("os^Dv" if named is None else "o") for color in colors.values()}
    for name, point in points.items():
        label = name if named is None or name in named else None
        (dot,) = axes.plot(*point, next(markers[colors[name]]), color=colors[name], markersize=9, label=label)
        dot.set(markeredgecolor="white", zorder=4)
    axes.margins(0.1)
    axes.legend(loc="best")
