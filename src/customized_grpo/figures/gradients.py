"""The gradients of the two roles, denoising step by step: do they agree, and how much of each is signal?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from customized_grpo.figures.canvas import IDENTITY, INK, PALETTE, PROMPT, FigureError, drawing

StepInterval = tuple[float, float, float, float]
"""(sigma, value, low, high) of one denoising step."""
Curves = Mapping[str, Sequence[StepInterval]]
"""Of each name, for the steps t = 0, 1, ... from the noisiest on. An interval need not hold its value, as a bootstrap's
may not."""

_ONE = 1 + 1e-6  # a cosine of 1 may come out a little above it
_MOST_TICKS = 26
_ROLES = {"identity": IDENTITY, "prompt": PROMPT}


def gradient_evidence(
    path: Path,
    cosines: Curves,
    agreements: Curves | None = None,
    strengths: Curves | None = None,
    title: str | None = None,
) -> None:
    """Draw, PNG, how the identity's and the prompt's gradient stand to each other at each denoising step.

    Args:
        path: the PNG to write; its folder is made.
        cosines: of the two roles' gradients.
        agreements: the inner product of their means over the noise, in a panel of its own.
        strengths: signal over noise of each role's gradient, in a further one.
        title: a line over all.

    Raises:
        FigureError: if there is no curve or step, the curves differ in their steps, a value is not
            finite, a cosine or bound is not in -1..1, or low is above high.
    """
    sigmas = _checked(path, cosines, None, _ONE, "give cosines, and bounds in order")
    # Not the colours of identity and prompt: each of these curves is of both.
    colours = cycle(colour for colour in PALETTE if colour not in _ROLES.values())
    of_both = {name: next(colours) for name in cosines}
    shown = [(cosines, of_both, "cosine of the two gradients")]
    if agreements is not None:
        shown.append((agreements, {name: of_both.get(name, INK) for name in agreements}, "agreement / noise"))
    if strengths is not None:
        looks = {name: _ROLES.get(name, INK) for name in strengths}
        shown.append((strengths, looks, "signal / noise of a gradient, one iteration"))
    for curves, _, _ in shown[1:]:
        _checked(path, curves, sigmas, math.inf, "give finite values, and bounds in order")
    width = min(12.0, max(5.6, 1.4 + 0.42 * len(sigmas)))
    with drawing(path, width, 0.4 + 3.4 * len(shown), title) as figure:
        for panel, (curves, looks, label) in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
            _draw(panel, curves, looks, sigmas, label)


def _checked(path: Path, curves: Curves, sigmas: list[float] | None, bound: float, remedy: str) -> list[float]:
    """The noise levels, those of `sigmas` where some are given. Raises FigureError."""
    for name, curve in curves.items():
        if not curve:
            raise FigureError(f"{path}: {name!r} has no step; give at least one")
        for t, (sigma, value, low, high) in enumerate(curve):
            if not math.isfinite(sigma):
                raise FigureError(f"{path}: {name!r} has the noise level {sigma} at step {t}; give finite ones")
            finite = all(map(math.isfinite, (value, low, high)))
            if not (finite and abs(value) <= bound and -bound <= low <= high <= bound):
                raise FigureError(f"{path}: {name!r} is {value} in {low}..{high} at step {t}; {remedy}")
        levels = [step[0] for step in curve]
        sigmas = sigmas or levels
        if len(levels) != len(sigmas) or not np.allclose(levels, sigmas, rtol=0, atol=1e-4):
            raise FigureError(f"{path}: the steps of {name!r} are not those of {next(iter(curves))!r}")
    if sigmas is None or not curves:
        raise FigureError(f"{path}: no curve to draw; give at least one")
    return sigmas


def _draw(axes: Axes, curves: Curves, colours: Mapping[str, str], sigmas: Sequence[float], label: str) -> None:
    steps = len(sigmas)
    axes.axhline(0, color=INK, linewidth=0.8)
    for i, (name, curve) in enumerate(curves.items()):
        _, value, low, high = np.array(curve, dtype=np.float64).T
        xs = np.arange(steps) + 0.12 * (i - (len(curves) - 1) / 2)  # side by side: no bar hides another
        axes.vlines(xs, low, high, color=colours[name], linewidth=1.2, alpha=0.8)
        for bound in (low, high):
            axes.plot(xs, bound, "_", color=colours[name], markersize=6)
        axes.plot(xs, value, color=colours[name], marker="o", markersize=4.5, label=name)
    at = range(0, steps, math.ceil(steps / _MOST_TICKS))
    axes.set_xticks(list(at), [f"{t}\n{sigmas[t]:.2f}" for t in at])
    axes.set_xlim(-0.6, steps - 0.4)
    axes.set_xlabel("denoising step t (0 is the noisiest), and below it its noise level sigma")
    axes.set_ylabel(label)
    axes.legend(loc="best", ncols=min(4, len(curves)))
