"""Terminal output: training progress, the table of scores, errors in one line."""

import errno
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Self, TypeGuard

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

ABSENT = "-"  #: stands for a missing number
MOST_ERRORS = 20  #: lines of error that are printed; the rest is counted

#: Metrics shown at every iteration: (label, key, format, shown if 0).
_SHOWN = (
    ("identity", "identity/mean", ".2f", True),
    ("prompt", "prompt/mean", ".2f", True),
    ("conflicted", "share/conflicted", ".0%", True),
    ("KL", "kl", ".1e", True),
    ("not scored", "share/missing", ".1%", False),
    ("vetoed", "share/vetoed", ".1%", False),
    ("updates skipped", "share/skipped", ".0%", False),
)

_FULL = "free some disk space and try again"
_PERMISSION = "give a file or folder that this user may use"
_PATH = "correct the path"
#: Remedies by the number of a system's error.
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit on file sizes and try again",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check the disk",
    errno.ENOENT: "correct the path or restore the file",
    errno.EEXIST: "give another name",
    errno.ENOTDIR: _PATH,
    errno.EISDIR: "give the name of a file",
    errno.ELOOP: _PATH,
    errno.ENAMETOOLONG: "give a shorter name",
}


class OutputConsole(Console):
    """Console that goes silent, where rich's ends the process, when nobody reads it: `cgrpo train | head -1`."""

    def on_broken_pipe(self) -> None:
        """Discard further output, also what is still buffered."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class WorkDisplay:
    """Progress of work on a number of items, with the time left: a bar in a terminal, lines in a log.

    `done` items were done before. `clock` returns seconds.
    """

    interval = 10.0  #: least number of seconds between two lines of a log

    def __init__(
        self, title: str, total: int, console: Console, *, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._total, self._console, self._clock = title, total, console, clock
        self._first = self._done = done
        self._began = self._shown = clock()
        live = console.is_terminal and not console.is_dumb_terminal
        self._bar = _Bar(title, total, done, console) if live else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, numbers: str = "") -> bool:
        """Show that so many items are done; return whether these are all."""
        now = self._clock()
        each = (now - self._began) / max(1, done - self._first)
        left = f"{_clock_time(each * max(0, self._total - done))} left"
        if self._bar is not None:
            self._bar.show(done, left, numbers)
        elif now - self._shown >= self.interval and (done < self._total or not self.interval):
            self.print("  ".join(filter(None, (self._title, f"{done}/{self._total}", numbers, left))))
            self._shown = now
        return done >= self._total

    def print(self, text: str) -> None:
        """Print a line above the bar, or in the log, which is flushed: a log that is followed does not lag behind."""
        self._console.print(Text(text), soft_wrap=True)


class TrainingDisplay(WorkDisplay):
    """Progress of a training: a live bar with the metrics below it in a terminal, a line per iteration in a log."""

    interval = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Show a finished iteration by its record of metrics; keys may be missing."""
        self._done += 1
        found = {key: value for key, value in record.items() if finite(value)}
        numbers = [
            f"{label} {found[key]:{form}}" for label, key, form, zero in _SHOWN if key in found and (zero or found[key])
        ]
        self.update(self._done, "  ".join(numbers))
        for key, value in found.items():
            if key.startswith("evaluation/") and key.endswith("/mean"):
                name = key.removeprefix("evaluation/").removesuffix("/mean")
                self.print(f"{self._done}/{self._total}  evaluation  {name} {value:.2f}")


class _Bar(Progress):
    """Progress bar with numbers below it."""

    def __init__(self, title: str, total: int, done: int, console: Console) -> None:
        self._numbers = ""
        # rich's own estimate looks back 30 seconds, and one item may take longer.
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.fields[left]}")
        super().__init__(*columns, console=console, refresh_per_second=4)
        self._task = self.add_task(escape(title), total=total, completed=done, left="")

    def show(self, done: int, left: str, numbers: str) -> None:
        self._numbers = numbers
        self.update(self._task, completed=done, left=left, refresh=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._numbers:
            yield Text(self._numbers, style="bold", no_wrap=True, overflow="ellipsis")


def percent(before: float, after: float) -> float | None:
    """Return a change in percent; None if the value before is so near 0 that a percentage says nothing."""
    near_zero = before * after <= 0 or abs(after - before) > 2 * abs(before)
    return None if near_zero else 100 * (after - before) / abs(before)


def score_table(
    rows: Iterable[tuple[str, float | None, float | None]],
    *,
    guards: Collection[str] = (),
    notes: Mapping[str, str] | None = None,
) -> Table:
    """Return a table of (name, base, tuned) scores; changes of `guards` have no colour, `notes` have a column."""
    table = Table("score")
    for heading in ("base", "tuned", "change", "change in %"):
        table.add_column(heading, justify="right")
    if notes:
        table.add_column("warning")
    for name, base, tuned in rows:
        before, after = (value if finite(value) else None for value in (base, tuned))
        change = after - before if before is not None and after is not None else None
        relative = None if before is None or after is None or name in guards else percent(before, after)
        style = "" if not change or name in guards else "green" if change > 0 else "red"
        table.add_row(
            Text(name),
            ABSENT if before is None else f"{before:.3f}",
            ABSENT if after is None else f"{after:.3f}",
            Text(ABSENT if change is None else f"{change:+.3f}", style=style),
            Text(ABSENT if relative is None else f"{relative:+.1f}", style=style),
            *([Text(notes.get(name, ""), style="yellow")] if notes else []),
        )
    return table


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: paths, names and prompts may contain rich's markup, `[b]`."""
    return OutputConsole(file=sys.stderr if stderr else None, markup=False, emoji=False)


def print_error(message: str) -> None:
    """Write "error: ..." to standard error as one line, with control characters escaped."""
    _print_line(Text.assemble(("error:", "bold red"), " ", _one_line(message)))


def print_errors(problems: Sequence[str]) -> None:
    """Write the first problems as lines of error, and how many more there are."""
    for problem in problems[:MOST_ERRORS]:
        print_error(problem)
    if (more := len(problems) - MOST_ERRORS) > 0:
        print_error(f"and {more} more of {len(problems)} problems; correct these first")


def print_notice(message: str) -> None:
    """Write one line to standard error that is no error, such as the end of a run that the user stopped."""
    _print_line(Text(_one_line(message)))


def _one_line(message: str) -> str:
    words = " ".join(message.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


def _print_line(line: Text) -> None:
    plain_console(stderr=True).print(line, soft_wrap=True)


def describe_os_error(error: OSError) -> str:
    """Return a system's error in one line, with a remedy if there is one for its number."""
    text = (error.strerror or str(error) or type(error).__name__).strip()
    where = f"{error.filename}: " if error.filename is not None else ""
    remedies = [_REMEDIES.get(error.errno or 0), *getattr(error, "__notes__", ())]
    return "; ".join([f"{where}{text[0].lower()}{text[1:]}", *filter(None, remedies)]) if error.strerror else text


def finite(value: object) -> TypeGuard[float]:
    """Report whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clock_time(seconds: float) -> str:
    """Format seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
