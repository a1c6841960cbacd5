"""Metrics of a training over its iterations."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from customized_grpo.figures.style import (
    BLUE,
    BOTH_NEGATIVE,
    BOTH_POSITIVE,
    CONFLICTED,
    GREEN,
    IDENTITY,
    INK,
    ORANGE,
    PALETTE,
    PINK,
    PROMPT,
    FigureError,
    drawing,
    grid_shape,
    integer_ticks,
    legend_above,
)
from customized_grpo.utils.terminal import finite, percent

Records = Sequence[Mapping[str, Any]]
Values = NDArray[np.float64]

_QUADRANTS = {
    "share/conflicted": ("conflicted", CONFLICTED),
    "share/both_positive": ("both positive", BOTH_POSITIVE),
    "share/both_negative": ("both negative", BOTH_NEGATIVE),
}
_STAGES = {
    "seconds/sampling": ("sampling", BLUE, "-"),
    "seconds/scoring": ("scoring", ORANGE, "-"),
    "seconds/validating": ("validating", PINK, "-"),
    "seconds/updating": ("updating", GREEN, "-"),
    "seconds/total": ("total", INK, "--"),
}
_WEIGHTS = {"weight/identity": ("identity", IDENTITY, "-"), "weight/prompt": ("prompt", PROMPT, "-")}
_GAINS = {"gain/identity": ("identity", IDENTITY, "-"), "gain/prompt": ("prompt", PROMPT, "-")}
_MULTIPLIERS = {
    "multiplier/identity": ("multiplier, identity", IDENTITY, "--"),
    "multiplier/prompt": ("multiplier, prompt", PROMPT, "--"),
}
_ERRORS = {
    "error/early": ("noisiest third", BLUE, "-"),
    "error/middle": ("middle", ORANGE, "-"),
    "error/late": ("cleanest third", GREEN, "-"),
}
QUADRANTS = "Signs of the two advantages"  #: title of the panel of the four quadrants
_SMOOTHED_FROM = 10  # records; fewer need no running mean
_OTHER_COLORS = [color for color in PALETTE if color not in (IDENTITY, PROMPT)]


@dataclass(frozen=True)
class Panel:
    """One chart of a training: its title, the metrics it shows, and the function that plots it on given axes."""

    title: str
    keys: tuple[str, ...]
    draw: Callable[[Axes], None]


def training_curves(path: Path, records: Records, title: str | None = None, *, guards: Collection[str] = ()) -> None:
    """Plot the metrics of a run to a PNG file, one panel for each kind that the records contain.

    Null breaks a curve. `guards` have a panel of their own: they may start near 0, where percents mean nothing.
    Raises FigureError if the records contain no metric.
    """
    panels = training_panels(records, guards=guards)
    if not panels:
        raise FigureError(f"{path}: the records contain no metric of a training")
    rows, columns = grid_shape(len(panels))
    with drawing(path, max(4.6, 4.2 * columns), 3.2 * rows, title) as figure:
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.set_title(panel.title)
            panel.draw(axes)


def training_panels(records: Records, *, guards: Collection[str] = ()) -> list[Panel]:
    """Return the panels for which the records have data. The arguments are those of :func:`training_curves`."""
    keys = {key for record in records for key in record if len(_series(records, key)[0])}
    evaluated = [f"evaluation/{name}/mean" for name in _names(keys, "evaluation/") if name not in guards]
    guarded = [f"evaluation/{name}/mean" for name in _names(keys, "evaluation/") if name in guards]
    rewards = [f"reward/{name}/mean" for name in _names(keys, "reward/") if name not in guards]
    panels: list[Panel] = []

    def add(title: str, shown: Iterable[str], draw: Callable[..., None], *arguments: Any) -> None:
        found = tuple(key for key in shown if key in keys)

        def on(axes: Axes) -> None:
            draw(axes, records, *arguments)
            axes.set_xlabel("iteration")
            integer_ticks(axes)

        if found:
            panels.append(Panel(title, found, on))

    for role, color in (("identity", IDENTITY), ("prompt", PROMPT)):
        if f"{role}/mean" in keys:
            add(f"{role.capitalize()} reward", [f"{role}/mean", f"{role}/std"], _reward, role, color)
    add("Scores of the evaluation", evaluated, _changes, evaluated)
    looks = zip(guarded, cycle(_OTHER_COLORS), strict=False)
    add("Guards", guarded, _lines, {key: (_name(key), color, "-") for key, color in looks}, "score")
    if len(rewards) > 2:  # the panels of the two roles show one reward each
        add("Rewards, one by one", rewards, _changes, rewards)
    if _complete(records, _QUADRANTS):
        add(QUADRANTS, _QUADRANTS, _quadrants)
    add("Gains on the validation images", _GAINS, _lines, _GAINS, "relative to the untuned model", None)
    add("Weights of the roles", [*_WEIGHTS, *_MULTIPLIERS], _lines, {**_WEIGHTS, **_MULTIPLIERS}, "weight, multiplier")
    add("Diversity in a group", ["diversity"], _line, "diversity", "rms difference of two images (%)", GREEN, 100)
    add("Distance from the reference policy", ["kl"], _line, "kl", "KL divergence (nats per element)", PINK)
    add("Clipped ratios", ["clip_fraction"], _line, "clip_fraction", "ratios clipped (%)", BLUE, 100)
    add("Distance from the moving average", ["old_distance"], _line, "old_distance", "squared distance (%)", PINK, 100)
    add("Error of the velocity", _ERRORS, _lines, _ERRORS, "mean squared error")
    add("Gradient norm", ["gradient_norm"], _gradient_norm)
    add("Learning rate", ["learning_rate"], _line, "learning_rate", "learning rate", INK)
    add("Time of an iteration", _STAGES, _lines, _STAGES, "seconds")
    return panels


def _series(records: Records, key: str) -> tuple[Values, Values]:
    """Return the iterations of a metric and its values, NaN for null; both are empty if no value is finite."""
    found = [(record["iteration"], record[key]) for record in records if key in record]
    xs = np.array([x for x, _ in found], dtype=np.float64)
    ys = np.array([y if finite(y) else math.nan for _, y in found], dtype=np.float64)
    return (xs, ys) if np.isfinite(ys).any() else (xs[:0], ys[:0])


def _complete(records: Records, keys: Iterable[str]) -> Records:
    """Return the records that have a finite value of each key."""
    return [record for record in records if all(finite(record.get(key)) for key in keys)]


def _names(keys: Iterable[str], prefix: str) -> list[str]:
    """Return NAME of each key of the form prefix + NAME + "/mean"."""
    return sorted(key[len(prefix) : -len("/mean")] for key in keys if key.startswith(prefix) and key.endswith("/mean"))


def _name(key: str) -> str:
    return key.partition("/")[2].removesuffix("/mean")


def _marker(xs: Values) -> str:
    return "o" if len(xs) <= 3 else ""


def _line(axes: Axes, records: Records, key: str, label: str, color: str, factor: float = 1.0) -> None:
    xs, ys = _series(records, key)
    axes.plot(xs, factor * ys, color=color, marker=_marker(xs), markersize=5)
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.08 * factor * float(np.nanmax(ys)) or None)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")


def _lines(
    axes: Axes,
    records: Records,
    shown: Mapping[str, tuple[str, str, str]],
    label: str,
    bottom: float | None = 0.0,
) -> None:
    """Plot metrics of one unit, key -> (label, color, style), where there are any; from `bottom` on if it is given."""
    for key, (name, color, style) in shown.items():
        xs, ys = _series(records, key)
        if len(xs):
            axes.plot(xs, ys, color=color, linestyle=style, marker=_marker(xs), markersize=5, label=name)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=bottom)
    legend_above(axes)


def _reward(axes: Axes, records: Records, role: str, color: str) -> None:
    axes.set_ylabel("score")
    both = _complete(records, (f"{role}/mean", f"{role}/std"))
    if both:
        band, middle = _series(both, f"{role}/mean")
        spread = _series(both, f"{role}/std")[1]
        label = "± spread in a group"
        if len(band) == 1:
            axes.errorbar(band, middle, spread, color=color, alpha=0.5, capsize=4, label=label)
        else:
            axes.fill_between(band, middle - spread, middle + spread, color=color, alpha=0.18, linewidth=0, label=label)
    xs, ys = _series(records, f"{role}/mean")
    if len(xs) < _SMOOTHED_FROM:
        axes.plot(xs, ys, color=color, marker=_marker(xs), markersize=5, label="mean")
    else:
        window = max(3, len(xs) // 10)
        smooth = [_mean(ys[max(0, i + 1 - window) : i + 1]) for i in range(len(ys))]
        axes.plot(xs, ys, color=color, linewidth=0.8, alpha=0.6, label="mean")
        axes.plot(xs, smooth, color=color, linewidth=2.2, label=f"mean of {window} iterations")
    legend_above(axes)


def _mean(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _changes(axes: Axes, records: Records, keys: Sequence[str]) -> None:
    """Plot scores of different scales on one axis, as changes in percent of their first value.

    A score that starts near 0 is plotted in percent of its largest value instead.
    """
    axes.set_ylabel("change since the first (%)")
    axes.axhline(0, color=INK, linewidth=0.8)
    others, used = cycle(_OTHER_COLORS), dict[str, int]()
    for key in keys:
        name = _name(key)
        xs, ys = _series(records, key)
        finite = ys[np.isfinite(ys)]
        first, last = finite[[0, -1]]
        near_zero = any(percent(first, value) is None for value in finite)
        whole = float(np.abs(finite).max()) if near_zero else abs(first)
        # A score whose name contains a role has the role's color; a second score of that color is dashed.
        color = next((c for role, c in (("identity", IDENTITY), ("prompt", PROMPT)) if role in name.lower()), None)
        color = color or next(others)
        repeat = used[color] = used.get(color, -1) + 1
        axes.plot(
            xs,
            100 * (ys - first) / (whole or math.nan),
            color=color,
            linestyle=("-", "--", ":", "-.")[repeat % 4],
            marker="os^D"[repeat % 4],
            markersize=4,
            label=f"{name}: {first:.4g}"
            + (f" → {last:.4g}" if len(xs) > 1 else "")
            + (" (% of the largest)" if near_zero else ""),
        )
    legend_above(axes)


def _quadrants(axes: Axes, records: Records) -> None:
    complete = _complete(records, _QUADRANTS)
    xs = np.array([record["iteration"] for record in complete], dtype=np.float64)
    stack = np.array([[100 * record[key] for record in complete] for key in _QUADRANTS])
    if len(xs) == 1:  # an area needs a width
        xs, stack = np.array([xs[0] - 0.5, xs[0] + 0.5]), np.repeat(stack, 2, axis=1)
    labels, colors = zip(*_QUADRANTS.values(), strict=True)
    axes.stackplot(xs, stack, labels=labels, colors=colors, linewidth=0)
    for level, label in ((50, "noise only: 50 / 25 / 25"), (75, None)):
        axes.axhline(level, color=INK, linestyle="--", linewidth=1, label=label)
    for role, style in (("identity", "-."), ("prompt", ":")):
        xs, ys = _series(records, f"share/no_signal_{role}")
        if np.nansum(ys) > 0:
            axes.plot(xs, 100 * ys, color=INK, linestyle=style, marker=_marker(xs), label=f"no signal, {role}")
    axes.set_ylabel("share of images (%)")
    axes.margins(x=0)
    axes.set_ylim(0, 100)
    axes.legend(loc="lower right")


def _gradient_norm(axes: Axes, records: Records) -> None:
    _line(axes, records, "gradient_norm", "norm before clipping", INK)
    known = _series(records, "gradient_norm")[1]
    known = known[np.isfinite(known)]
    if known.min() > 0 and known.max() > 20 * known.min():
        axes.set_yscale("log")
        axes.autoscale(axis="y")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
