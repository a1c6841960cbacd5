"""The colours and the style sheet that all figures share."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from customized_grpo.utils.records import write_bytes

# Okabe and Ito's colours, which stay apart under the common forms of colour blindness.
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREEN: Final = "#009E73"
ORANGE: Final = "#E69F00"
PINK: Final = "#CC79A7"
SKY: Final = "#56B4E9"
GREY: Final = "#999999"
INK: Final = "#222222"
PALETTE: Final = (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY)

IDENTITY: Final = BLUE
PROMPT: Final = VERMILION
CONFLICTED: Final = ORANGE
BOTH_POSITIVE: Final = GREEN
BOTH_NEGATIVE: Final = GREY
BASE: Final = GREY
TUNED: Final = GREEN

STYLE: Final = Path(__file__).with_name("paper.mplstyle")


class FigureError(ValueError):
    """Data that cannot be shown in a figure. The message is one line with the reason."""


@contextmanager
def drawing(path: Path, width: float, height: float, title: str | None = None) -> Iterator[Figure]:
    """Yield an empty figure of a size in inches, and write it to a PNG file in one step if the block succeeds.

    pyplot and its global state are not used.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(width, height))
        if title:
            figure.suptitle(title)
        yield figure
        buffer = BytesIO()
        figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def integer_ticks(axes: Axes) -> None:
    """Put ticks of the x axis at integers only."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def legend_above(axes: Axes) -> None:
    """Add a legend at the upper left, with space for it above the curves of linear axes."""
    entries = len(axes.get_legend_handles_labels()[1])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.1 * entries * (high - low))
    axes.legend(loc="upper left")


def grid_shape(panels: int) -> tuple[int, int]:
    """Return (rows, columns) for a number of panels: three columns, or two if that leaves fewer empty cells."""
    columns = min(panels, min((3, 2), key=lambda count: -panels % count))
    return -(-panels // columns), columns
