"""Weights of the two rewards over the denoising steps."""

from collections.abc import Iterable
from pathlib import Path
from typing import SupportsFloat

from matplotlib.axes import Axes

from customized_grpo.figures.style import IDENTITY, INK, PROMPT, drawing, integer_ticks


def schedule(
    path: Path,
    w_prompt: Iterable[SupportsFloat],
    w_identity: Iterable[SupportsFloat],
    *,
    sigmas: Iterable[SupportsFloat] | None = None,
    title: str | None = None,
) -> None:
    """Plot the weight of each reward (T,) at each denoising step, 0 the noisiest, and noise levels (T,) or (T + 1,)."""
    with drawing(path, 5.6, 3.4, title) as figure:
        draw_schedule(figure.add_subplot(), w_prompt, w_identity, sigmas)


def draw_schedule(
    axes: Axes,
    w_prompt: Iterable[SupportsFloat],
    w_identity: Iterable[SupportsFloat],
    sigmas: Iterable[SupportsFloat] | None = None,
) -> None:
    """Plot the weights on given axes. The arguments are those of :func:`schedule`."""
    # The larger markers are plotted first: both are seen where the weights are equal.
    for values, color, size, label in ((w_prompt, PROMPT, 6.5, "prompt"), (w_identity, IDENTITY, 3.5, "identity")):
        axes.plot([float(value) for value in values], color=color, marker="o", markersize=size, label=label)
    axes.set_xlabel("denoising step t (0 is the noisiest)")
    axes.set_ylabel("weight of the reward")
    axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
    integer_ticks(axes)
    handles = axes.get_lines()
    if sigmas is not None:
        right = axes.twinx()
        handles += right.plot([float(sigma) for sigma in sigmas], color=INK, linestyle=":", label="noise level sigma")
        right.set_ylabel("noise level sigma")
        right.set_ylim(bottom=0)
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(handles))
