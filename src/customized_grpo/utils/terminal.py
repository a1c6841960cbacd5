"""What a run says to the person in front of it: progress, the table of scores, one line of error.

A terminal gets a live bar; a log file gets short lines, one for each iteration.
"""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

ABSENT = "-"  #: stands for a number that is not there

_LIVE: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("identity", "identity/mean", lambda value: f"{value:.2f}"),
    ("prompt", "prompt/mean", lambda value: f"{value:.2f}"),
    ("conflicted", "share/conflicted", lambda value: f"{value:.0%}"),
    ("KL", "kl", lambda value: f"{value:.1e}"),
)
"""The numbers shown of every record: label, key, format."""

_ROOM = "make room and try again; a run goes on by --resume"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on file sizes and try again; a run goes on by --resume",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a file or folder that this user may use",
    errno.EPERM: "give a file or folder that this user may use",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check the disk",
}
"""What to do about errors of the system, by their number."""


class TrainingDisplay:
    """Shows how far a training is. Use it as a context manager; call `update` once an iteration.

    Args:
        iterations: how many the whole run has.
        done: how many of them an earlier process made, for a run that resumes.
        console: where to write; standard output where none is given.
        clock: seconds, ever rising.
    """

    def __init__(
        self,
        iterations: int,
        *,
        done: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._iterations, self._first, self._done = iterations, done, done
        self._console = console or Console()
        self._clock = clock
        self._began = clock()
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = _Bar(self._console, iterations, done) if live else None

    def __enter__(self) -> Self:
        self._began = self._clock()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, record: Mapping[str, Any]) -> None:
        """Show one more finished iteration by its record of metrics; keys may be missing."""
        self._done += 1
        numbers = [
            f"{label} {form(value)}" for label, key, form in _LIVE if (value := _number(record.get(key))) is not None
        ]
        if missing := _number(record.get("share/missing")):
            numbers.append(f"not scored {missing:.1%}")
        if vetoed := _number(record.get("share/vetoed")):
            numbers.append(f"vetoed {vetoed:.1%}")
        if skipped := _number(record.get("share/skipped")):
            numbers.append(f"updates skipped {skipped:.0%}")
        left = f"{_clock_time(self._seconds_left())} left"
        if self._bar is not None:
            self._bar.show(self._done, left, "  ".join(numbers))
        else:
            self.message("  ".join([f"{self._done}/{self._iterations}", *numbers, left]))
        scores = [
            f"{key.split('/', 1)[1].removesuffix('/mean')} {value:.2f}"
            for key in record
            if key.startswith("evaluation/") and key.endswith("/mean")
            if (value := _number(record[key])) is not None
        ]
        for score in scores:
            self.message(f"{self._done}/{self._iterations}  evaluation  {score}")

    def message(self, text: str) -> None:
        """Say one line, above the bar where there is one."""
        self._console.print(Text(text), soft_wrap=True)
        self._console.file.flush()  # a log that is followed should not lag a buffer behind

    def _seconds_left(self) -> float:
        made = self._done - self._first
        return (self._clock() - self._began) / made * max(0, self._iterations - self._done)


class _Bar(Progress):
    """The bar, and under it the numbers of the last iteration."""

    def __init__(self, console: Console, iterations: int, done: int) -> None:
        self._numbers = ""
        # rich's own estimate looks back 30 seconds, which is less than one iteration may take.
        super().__init__(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._training = self.add_task("training", total=iterations, completed=done, left="")

    def show(self, done: int, left: str, numbers: str) -> None:
        self._numbers = numbers
        self.update(self._training, completed=done, left=left, refresh=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self._numbers, style="bold", no_wrap=True, overflow="ellipsis")


def score_table(
    rows: Iterable[tuple[str, float | None, float | None]],
    *,
    guards: Collection[str] = (),
    notes: Mapping[str, str] | None = None,
) -> Table:
    """Before and after, as a table to print.

    Args:
        rows: (score's name, base, tuned). None, or what is not finite, shows as "-"; so does the
            change in percent where the base is 0. Higher counts as better.
        guards: names of scores whose change is neither good nor bad, and has no colour.
        notes: a few words of warning by the score's name, in a column that is there where any are.
    """
    table = Table("score")
    for heading in ("base", "tuned", "change", "change in %"):
        table.add_column(heading, justify="right")
    if notes:
        table.add_column("warning")
    for name, base, tuned in rows:
        before, after = _number(base), _number(tuned)
        change = after - before if before is not None and after is not None else None
        percent = 100 * change / abs(before) if change is not None and before else None
        style = "" if not change or name in guards else "green" if change > 0 else "red"
        table.add_row(
            Text(name),
            ABSENT if before is None else f"{before:.3f}",
            ABSENT if after is None else f"{after:.3f}",
            Text(ABSENT if change is None else f"{change:+.3f}", style=style),
            Text(ABSENT if percent is None else f"{percent:+.1f}", style=style),
            *([Text(notes.get(name, ""), style="yellow")] if notes else []),
        )
    return table


def print_error(message: str) -> None:
    """Write "error: ..." to standard error, as one line whatever the message holds.

    What a terminal would obey, or could not show, is written as an escape.
    """
    words = " ".join(message.split())
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)
    line = Text.assemble(("error:", "bold red"), " ", plain)
    Console(file=sys.stderr).print(line, soft_wrap=True)


def told_os_error(error: OSError) -> str:
    """What the system says of a file, and the remedy where there is one for the number of its error."""
    said = (error.strerror or str(error) or type(error).__name__).strip()
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}{said[0].lower()}{said[1:]}; {remedy}" if remedy else str(error) or said


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _clock_time(seconds: float) -> str:
    """H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
