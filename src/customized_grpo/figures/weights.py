"""The weights of the two rewards over the denoising steps (TDW and its rivals)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import SupportsFloat

from customized_grpo.figures.canvas import (
    IDENTITY,
    INK,
    PROMPT,
    FigureError,
    drawing,
    whole_numbers,
)


def schedule(
    path: Path,
    w_prompt: Iterable[SupportsFloat],
    w_identity: Iterable[SupportsFloat],
    *,
    sigmas: Iterable[SupportsFloat] | None = None,
    title: str | None = None,
    size: tuple[float, float] = (5.6, 3.4),
) -> None:
    """Draw the weight of each reward at each denoising step; PNG, or SVG by the name.

    Args:
        path: the file to write; its folder is made.
        w_prompt: (T,) the prompt's weights; step 0 is the noisiest.
        w_identity: (T,) the identity's weights.
        sigmas: (T,) or (T + 1,) noise levels from 1 to 0, drawn on a second axis.
        title: a line over all.
        size: width and height in inches.

    Raises:
        FigureError: if the lengths disagree or there is no step.
    """
    prompt, identity = [float(w) for w in w_prompt], [float(w) for w in w_identity]
    levels = None if sigmas is None else [float(sigma) for sigma in sigmas]
    steps = len(prompt)
    if steps == 0 or len(identity) != steps:
        raise FigureError(f"{path}: {steps} prompt and {len(identity)} identity weights; give T of each")
    if levels is not None and len(levels) not in (steps, steps + 1):
        raise FigureError(f"{path}: {len(levels)} noise levels for {steps} steps; give T or T + 1")
    with drawing(path, *size, title) as figure:
        axes = figure.add_subplot()
        # The larger marks lie below: where the weights are equal both are seen.
        for values, colour, marker, label in (
            (prompt, PROMPT, 6.5, "prompt"),
            (identity, IDENTITY, 3.5, "identity"),
        ):
            axes.plot(range(steps), values, color=colour, marker="o", markersize=marker, label=label)
        axes.set_xlabel("denoising step t (0 is the noisiest)")
        axes.set_ylabel("weight of the reward")
        axes.set_ylim(0, max(1.0, *prompt, *identity) * 1.05)
        whole_numbers(axes)
        handles, labels = axes.get_legend_handles_labels()
        if levels is not None:
            right = axes.twinx()
            line = right.plot(range(len(levels)), levels, color=INK, linestyle=":")
            right.set_ylabel("noise level sigma")
            right.set_ylim(0, max(levels) * 1.05)
            right.grid(visible=False)
            right.spines["right"].set_visible(True)
            handles, labels = [*handles, *line], [*labels, "noise level sigma"]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
