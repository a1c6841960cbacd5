"""What all figures share: one palette, one look, and a file that is replaced in one move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from customized_grpo.utils.records import write_bytes


class FigureError(ValueError):
    """Something that cannot be drawn; its text is one line that says what and why."""


# Okabe and Ito's colours, which stay apart under the common forms of colour blindness.
BLUE: Final = "#0072B2"
VERMILLION: Final = "#D55E00"
GREEN: Final = "#009E73"
ORANGE: Final = "#E69F00"
PINK: Final = "#CC79A7"
SKY: Final = "#56B4E9"
GREY: Final = "#999999"
INK: Final = "#222222"
PALETTE: Final = (BLUE, VERMILLION, GREEN, ORANGE, PINK, SKY)
"""In the order in which things without a colour of their own take them."""

IDENTITY: Final = BLUE
PROMPT: Final = VERMILLION
CONFLICTED: Final = ORANGE
BOTH_POSITIVE: Final = GREEN
BOTH_NEGATIVE: Final = GREY
SILENT: Final = "#D8D2E4"
ON_AREA: Final = "#1A1A1A"  # words on any of the areas
BASE: Final = GREY
TUNED: Final = GREEN

DPI: Final = 144
POINTS: Final = 72  # an SVG's own units to an inch
FONT: Final = "DejaVu Sans"  # comes with matplotlib: the same letters on every machine

_LOOK: Final[dict[Any, Any]] = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a prompt may hold a dollar sign
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": "standard",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "axes.facecolor": "white",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "legend.fontsize": 8,
    "legend.frameon": True,
    "legend.framealpha": 0.8,
    "legend.edgecolor": "white",
    "legend.facecolor": "white",
}


@contextmanager
def drawing(path: Path, width: float, height: float, title: str | None = None) -> Iterator[Figure]:
    """A figure of `width` by `height` inches, written to `path` when the block ends: PNG, or SVG by the name.

    Drawn without pyplot: no window, and no figure that outlives the block. Nothing is written
    where the block raises. Words of an SVG stay words, and equal figures give equal files.
    """
    with matplotlib.rc_context({**_LOOK, "svg.fonttype": "none", "svg.hashsalt": "figure"}):
        vector = path.suffix == ".svg"
        figure = Figure(figsize=(width, height), dpi=POINTS if vector else DPI, layout="constrained")
        if title:
            figure.suptitle(title, fontsize=12, fontweight="bold")
        yield figure
        buffer = BytesIO()
        if vector:
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        else:
            figure.savefig(buffer, format="png", dpi=DPI)
    write_bytes(path, buffer.getvalue())


def plain_numbers(axis: Axis) -> None:
    """Ticks such as 1e-05 at each place, rather than a power of ten for all in a corner."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def legend_above(axes: Axes) -> None:
    """A legend at the top left of linear axes, in room made for it over the curves."""
    entries = len(axes.get_legend_handles_labels()[1])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.1 * entries * (high - low))
    axes.legend(loc="upper left")


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
