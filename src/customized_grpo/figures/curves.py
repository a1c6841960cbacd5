"""A training over its iterations: rewards, advantages, how far the policy moved, and the time."""

from __future__ import annotations

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

from customized_grpo.figures.canvas import (
    BLUE,
    BOTH_NEGATIVE,
    BOTH_POSITIVE,
    CONFLICTED,
    GREEN,
    IDENTITY,
    INK,
    ON_AREA,
    ORANGE,
    PALETTE,
    PINK,
    PROMPT,
    SILENT,
    FigureError,
    drawing,
    legend_above,
    plain_numbers,
    whole_numbers,
)

Records = Sequence[Mapping[str, Any]]
Values = NDArray[np.float64]

_QUADRANTS = (
    ("share/conflicted", "conflicted", CONFLICTED),
    ("share/both_positive", "both positive", BOTH_POSITIVE),
    ("share/both_negative", "both negative", BOTH_NEGATIVE),
)
_STAGES = (
    ("seconds/sampling", "sampling", BLUE),
    ("seconds/scoring", "scoring", ORANGE),
    ("seconds/updating", "updating", GREEN),
)
QUADRANTS = "Signs of the two advantages"  #: title of the panel of the four quadrants
_SMOOTHED_FROM = 10  # records: with fewer, a running mean says no more than the curve itself


@dataclass(frozen=True)
class Panel:
    """One chart of a training: its title, the metrics it shows, and how to draw it on given axes."""

    title: str
    keys: tuple[str, ...]
    draw: Callable[[Axes], None]


def training_curves(path: Path, records: Records, title: str | None = None, *, guards: Collection[str] = ()) -> None:
    """Draw the metrics of a run, PNG, one panel for each kind of which there is any.

    Args:
        path: the PNG to write; its folder is made.
        records: one mapping for each iteration, with "iteration" and any of the metrics. A key
            that a record lacks is passed over; null breaks the curve.
        title: a line over all.
        guards: names among the scores of the evaluation that are drawn apart and in their own unit:
            what may start near 0 has no change in percent.

    Raises:
        FigureError: if a record has no iteration, or nothing in the records can be drawn.
    """
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("iteration"), int):
            raise FigureError(f"{path}: record {number} has no iteration; give it a whole number")
    panels = training_panels(records, guards=guards)
    if not panels:
        raise FigureError(f"{path}: the records hold nothing to draw; give those of a training")

    # Three to a row, or two where that leaves fewer empty places.
    columns = min(len(panels), min((3, 2), key=lambda count: -len(panels) % count))
    rows = math.ceil(len(panels) / columns)
    with drawing(path, max(4.6, 4.2 * columns), 3.2 * rows, title) as figure:
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.set_title(panel.title)
            panel.draw(axes)


def training_panels(records: Records, *, guards: Collection[str] = ()) -> list[Panel]:
    """The panels for which there is anything in the records; arguments as in `training_curves`."""
    keys = {key for record in records for key in record if len(_series(records, key)[0])}
    evaluated = _names(keys, "evaluation/")
    held_out = [name for name in evaluated if name not in guards]
    guarded = [name for name in evaluated if name in guards]
    rewards = [name for name in _names(keys, "reward/") if name not in guards]
    panels: list[Panel] = []

    def add(title: str, shown: Iterable[str], draw: Callable[..., None], *arguments: Any) -> None:
        def on(axes: Axes) -> None:
            draw(axes, records, *arguments)
            axes.set_xlabel("iteration")
            whole_numbers(axes)

        panels.append(Panel(title, tuple(key for key in shown if key in keys), on))

    for role, colour in (("identity", IDENTITY), ("prompt", PROMPT)):
        if f"{role}/mean" in keys:
            add(f"{role.capitalize()} reward", [f"{role}/mean", f"{role}/std"], _reward, role, colour)
    if held_out:
        means = [f"evaluation/{name}/mean" for name in held_out]
        add("Scores of the evaluation", means, _changes, "evaluation/", held_out)
    if guarded:
        add("Guards", [f"evaluation/{name}/mean" for name in guarded], _guards, guarded)
    if len(rewards) > 2:  # with two, the panels of the roles show them already
        add("Rewards, one by one", [f"reward/{name}/mean" for name in rewards], _changes, "reward/", rewards)
    quadrants = [key for key, _, _ in _QUADRANTS]
    if _with_all(records, quadrants):
        add(QUADRANTS, quadrants, _quadrants)
    if "diversity" in keys:
        add("Diversity in a group", ["diversity"], _diversity)
    if keys & {"kl", "clip_fraction"}:
        add("How far the policy moves", ["kl", "clip_fraction"], _movement)
    if "gradient_norm" in keys:
        add("Gradient norm", ["gradient_norm"], _gradient)
    if "learning_rate" in keys:
        add("Learning rate", ["learning_rate"], _rate)
    stages = [key for key, _, _ in _STAGES]
    if keys & {"seconds/total", *stages}:
        add("Time of an iteration", [*stages, "seconds/total"], _seconds, keys)
    return panels


def _series(records: Records, key: str) -> tuple[Values, Values]:
    """Iterations that have the key, and its values, not a number for null; empty where all are."""
    found = [(record["iteration"], record[key]) for record in records if key in record]
    xs = np.array([x for x, _ in found], dtype=np.float64)
    ys = np.array([_number(y) for _, y in found], dtype=np.float64)
    return (xs, ys) if np.isfinite(ys).any() else (xs[:0], ys[:0])


def _number(value: object) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return math.nan


def _names(keys: Iterable[str], prefix: str) -> list[str]:
    """Names in keys of the form prefix + name + "/mean"; a name may hold slashes itself."""
    return sorted(key[len(prefix) : -len("/mean")] for key in keys if key.startswith(prefix) and key.endswith("/mean"))


def _marker(xs: Values) -> str:
    return "o" if len(xs) <= 3 else ""


def _reward(axes: Axes, records: Records, role: str, colour: str) -> None:
    axes.set_ylabel("score")
    xs, ys = _series(records, f"{role}/mean")
    paired = [record for record in records if f"{role}/mean" in record and f"{role}/std" in record]
    spread = _series(paired, f"{role}/std")[1]
    if len(spread):
        band, middle = _series(paired, f"{role}/mean")
        label = "± spread in a group"
        if len(band) == 1:
            axes.errorbar(band, middle, spread, color=colour, alpha=0.5, capsize=4, label=label)
        else:
            low, high = middle - spread, middle + spread
            axes.fill_between(band, low, high, color=colour, alpha=0.18, linewidth=0, label=label)
    if len(xs) < _SMOOTHED_FROM:
        axes.plot(xs, ys, color=colour, marker=_marker(xs), markersize=5, label="mean")
    else:
        window = max(3, len(xs) // 10)
        axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.6, label="mean")
        axes.plot(
            xs,
            _running(ys, window),
            color=colour,
            linewidth=2.2,
            label=f"mean of {window} iterations",
        )
    legend_above(axes)


def _running(values: Values, window: int) -> Values:
    """Mean over the last `window` values, over fewer at the start; gaps are left out of it."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known).astype(np.float64)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))


def _changes(axes: Axes, records: Records, prefix: str, names: Sequence[str]) -> None:
    """Scores of any scale on one axis: in percent of what each was at first."""
    axes.set_ylabel("change since the first (%)")
    axes.axhline(0, color=INK, linewidth=0.8)
    others = cycle(colour for colour in PALETTE if colour not in (IDENTITY, PROMPT))
    used: dict[str, int] = {}
    for name in names:
        xs, ys = _series(records, f"{prefix}{name}/mean")
        first, last = ys[np.isfinite(ys)][[0, -1]]
        # A role's hue where the name says the role; a second score of it is dashed.
        role = next((role for role in ("identity", "prompt") if role in name.lower()), None)
        colour = {"identity": IDENTITY, "prompt": PROMPT}.get(role or "") or next(others)
        repeat = used[colour] = used.get(colour, -1) + 1
        axes.plot(
            xs,
            100 * (ys - first) / (abs(first) or math.nan),
            color=colour,
            linestyle=("-", "--", ":", "-.")[repeat % 4],
            marker="os^D"[repeat % 4],
            markersize=4,
            label=f"{name}: {first:.4g}" + (f" → {last:.4g}" if len(xs) > 1 else ""),
        )
    legend_above(axes)


def _guards(axes: Axes, records: Records, names: Sequence[str]) -> None:
    axes.set_ylabel("score")
    for name, colour in zip(
        names, cycle(colour for colour in PALETTE if colour not in (IDENTITY, PROMPT)), strict=False
    ):
        xs, ys = _series(records, f"evaluation/{name}/mean")
        axes.plot(xs, ys, color=colour, marker="o", markersize=4, label=name)
    legend_above(axes)


def _quadrants(axes: Axes, records: Records) -> None:
    axes.set_ylabel("share of images (%)")
    xs, shares = _areas(axes, records, _QUADRANTS, 100.0)
    told = shares.sum(0)
    if (told < 99.9).any():
        axes.fill_between(xs, told, 100.0, color=SILENT, linewidth=0, label="silent: no signal in a role")
    for level in (50, 75):
        label = "noise only: 50 / 25 / 25" if level == 50 else None
        axes.axhline(level, color=INK, linestyle="--", linewidth=1, label=label)
    for key, style in (("share/no_signal_identity", "-."), ("share/no_signal_prompt", ":")):
        xs, ys = _series(records, key)
        if np.nansum(ys) > 0:
            label = f"no signal, {key.rpartition('_')[2]}"
            axes.plot(xs, 100 * ys, color=INK, linestyle=style, marker=_marker(xs), label=label)
    axes.set_ylim(0, 100)
    handles, labels = axes.get_legend_handles_labels()
    # The areas are named where they lie; the legend is for the rest.
    named = {name for _, name, _ in _QUADRANTS}
    lines = [(h, name) for h, name in zip(handles, labels, strict=True) if name not in named]
    axes.legend(*zip(*lines, strict=True), loc="lower right", bbox_to_anchor=(1, 0.06))
    early = shares[:, : math.ceil(shares.shape[1] / 5)].mean(axis=1)
    middles = np.cumsum(early) - early / 2
    for middle, (_, name, colour) in zip(middles, _QUADRANTS, strict=True):
        plate = {"facecolor": colour, "edgecolor": "none", "pad": 1}  # no line through the word
        at = axes.get_yaxis_transform()
        axes.text(0.03, middle, name, transform=at, va="center", color=ON_AREA, bbox=plate)


def _areas(
    axes: Axes, records: Records, parts: Sequence[tuple[str, str, str]], factor: float = 1.0
) -> tuple[Values, Values]:
    """Stack areas of (key, label, colour), and return where they stand and their heights (parts, places)."""
    whole = _with_all(records, [key for key, _, _ in parts])
    xs = np.array([record["iteration"] for record in whole], dtype=np.float64)
    stack = factor * np.array([[record[key] for record in whole] for key, _, _ in parts])
    if len(xs) == 1:  # an area needs a width
        xs, stack = np.array([xs[0] - 0.5, xs[0] + 0.5]), np.repeat(stack, 2, axis=1)
    labels, colours = [label for _, label, _ in parts], [colour for _, _, colour in parts]
    axes.stackplot(xs, stack, labels=labels, colors=colours, linewidth=0)
    axes.margins(x=0)
    return xs, stack


def _with_all(records: Records, keys: Sequence[str]) -> Records:
    """The records with a finite value for each of the keys; none for no keys."""
    return [r for r in records if keys and all(math.isfinite(_number(r.get(k))) for k in keys)]


def _movement(axes: Axes, records: Records) -> None:
    xs, ys = _series(records, "kl")
    clipped_xs, clipped = _series(records, "clip_fraction")
    right = axes
    if len(xs):
        axes.plot(xs, ys, color=PINK, marker=_marker(xs), markersize=5)
        axes.set_ylabel("KL to the reference (nats per element)", color=PINK)
        plain_numbers(axes.yaxis)
        if len(clipped):
            right = axes.twinx()
            right.grid(visible=False)
            right.spines["right"].set_visible(True)
    if len(clipped):
        right.plot(clipped_xs, 100 * clipped, color=BLUE, linestyle="--", marker=_marker(xs), markersize=5)
        right.set_ylabel("ratios clipped (%)", color=BLUE)
        right.set_ylim(bottom=0)


def _gradient(axes: Axes, records: Records) -> None:
    axes.set_ylabel("norm before clipping")
    xs, ys = _series(records, "gradient_norm")
    axes.plot(xs, ys, color=INK, marker=_marker(xs), markersize=5)
    known = ys[np.isfinite(ys)]
    if known.min() > 0 and known.max() > 20 * known.min():
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        axes.yaxis.set_minor_formatter(NullFormatter())


def _rate(axes: Axes, records: Records) -> None:
    axes.set_ylabel("learning rate")
    xs, ys = _series(records, "learning_rate")
    axes.plot(xs, ys, color=INK, marker=_marker(xs), markersize=5)
    axes.set_ylim(bottom=0)
    plain_numbers(axes.yaxis)


def _diversity(axes: Axes, records: Records) -> None:
    axes.set_ylabel("rms difference of two pictures (%)")
    xs, ys = _series(records, "diversity")
    axes.plot(xs, 100 * ys, color=GREEN, marker=_marker(xs), markersize=5)
    axes.set_ylim(bottom=0)


def _seconds(axes: Axes, records: Records, keys: set[str]) -> None:
    axes.set_ylabel("seconds")
    stages = [stage for stage in _STAGES if stage[0] in keys]
    if _with_all(records, [key for key, _, _ in stages]):
        _areas(axes, records, stages)
    xs, ys = _series(records, "seconds/total")
    if len(xs):
        axes.plot(xs, ys, color=INK, linewidth=1, marker=_marker(xs), markersize=5, label="total")
    axes.set_ylim(bottom=0)
    legend_above(axes)
