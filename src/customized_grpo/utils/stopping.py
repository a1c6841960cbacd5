"""Leaving on request: a SIGTERM, as a preempted node gets it, or Ctrl-C saves a training and ends it.

A Python signal handler runs between two steps of the interpreter, anywhere in the loop. It may end the training there
as long as the weights are those of a whole number of iterations; while they are not, it waits until they are.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

#: Seconds from the request until the process is gone, saved or not; those who send a SIGTERM often wait for 30.
PATIENCE = 25.0


class Stopped(KeyboardInterrupt):
    """A training that was asked to end and has been saved; its text is one line with how to go on."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.code = 128 + number


@contextmanager
def ended_by_sigterm(told: str) -> Iterator[None]:
    """Inside it, on the main thread, a SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt; the next ones wait.

    For what has nothing of its own to save but must see to others before it leaves. `told` says how to go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raises(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Stopped(number, told)

    before = signal.signal(signal.SIGTERM, raises)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopping:
    """Listens to SIGTERM and SIGINT inside the block, on the main thread.

    The first of them raises Stopped where the training allows it, and saves once all contexts inside the block are
    left. Ctrl-C after it ends the process at once, and so does `PATIENCE`. A process that is not to save itself goes on
    until then, so that none waits for it in vain.

    Args:
        run: its folder, for what is said.
        saves: whether this process is the one that saves.
        alone: whether it is the only one of its run. A launcher passes on what its terminal sends already, so that
            one Ctrl-C comes twice to each of several.
    """

    def __init__(self, run: Path, *, saves: bool = True, alone: bool = True) -> None:
        self._run, self._saves, self._alone = run, saves, alone
        self._save: Callable[[], object] | None = None
        self._asked: int | None = None
        self._saved = False
        self._before: dict[int, Any] = {}
        self._end: threading.Timer | None = None

    def allow(self, save: Callable[[], object]) -> None:
        """From here on the training may end at any moment: the weights are those that `save` keeps."""
        self._save = save
        if self._asked is not None and self._saves:
            raise Stopped(self._asked)

    def forbid(self) -> None:
        """From here on it may not, until it is allowed again."""
        self._save = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asked is None or not self._saves or (kind is not None and not issubclass(kind, Stopped)):
            self._restore()
            return
        if self._save is not None:
            self._save()
        self._saved = True  # what is left may still pass the time, as trackers that end
        name = signal.Signals(self._asked).name
        raise Stopped(self._asked, f"{self._run}: saved and stopped by {name}; go on by --resume {self._run}") from None

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._end is not None and self._saves:
            self._end.cancel()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL if self._alone else signal.SIG_IGN)
        self._end = threading.Timer(PATIENCE, self._leave)
        self._end.daemon = True
        self._end.start()
        if not self._saves:
            return
        # Not print: the handler may have interrupted one.
        os.write(2, b"stopping; Ctrl-C again leaves without saving\n")
        if self._save is not None:
            raise Stopped(number)

    def _leave(self) -> None:
        assert self._asked is not None
        if self._saves:
            what = "saved, and left before all else had ended" if self._saved else "no time to save"
            os.write(2, f"error: {self._run}: {what}; go on by --resume {self._run}\n".encode())
        os._exit(128 + self._asked)
