"""Stop requests: SIGTERM, as a preempted node gets it, or Ctrl-C saves a training and ends it.

A Python signal handler runs between two bytecode instructions, anywhere in the training loop. It may end the training
there as long as the weights are those of whole iterations; otherwise it waits until they are.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

#: Seconds from the request until the process exits, saved or not. Schedulers often send SIGKILL 30 s after SIGTERM.
PATIENCE = 25.0


class Stopped(KeyboardInterrupt):
    """A training ended on request after it was saved; the message is one line, `code` is 128 + signal number."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.code = 128 + number


@contextmanager
def ended_by_sigterm(message: str) -> Iterator[None]:
    """Raise `Stopped` with the message on SIGTERM inside the block, on the main thread; ignore further SIGTERMs."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Stopped(number, message)

    on_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if on_main else None
    try:
        yield
    finally:
        if on_main:
            signal.signal(signal.SIGTERM, before)


class Stopping:
    """Handle SIGTERM and SIGINT inside the block, on the main thread.

    The first signal raises `Stopped` where the training allows it; the training is saved when the block is left. A
    second Ctrl-C ends the process at once, and `PATIENCE` seconds end it in any case. A process that does not save
    (`saves`) continues until then, so that no other waits for it in vain. If it is not `alone`, its launcher forwards a
    signal that the terminal sends anyway, so that it gets one Ctrl-C twice.
    """

    def __init__(self, run: Path, *, saves: bool = True, alone: bool = True) -> None:
        self._run, self._saves, self._alone = run, saves, alone
        self._save: Callable[[], object] | None = None
        self._asked: int | None = None
        self._saved = False
        self._before: dict[int, Any] = {}
        self._end: threading.Timer | None = None

    def allow(self, save: Callable[[], object]) -> None:
        """Allow a stop at any moment from here on; `save` stores the present weights."""
        self._save = save
        if self._asked is not None and self._saves:
            raise Stopped(self._asked)

    def forbid(self) -> None:
        """Delay stops until they are allowed again."""
        self._save = None

    def save(self) -> None:
        """Save as a stop would, where a stop is allowed."""
        if self._save is not None:
            self._save()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._asked is None or not self._saves or (kind is not None and not issubclass(kind, Stopped)):
            for number, handler in self._before.items():
                signal.signal(number, handler)
            if self._end is not None and self._saves:
                self._end.cancel()
            return
        self.save()
        self._saved = True  # what still runs, such as trackers, may exceed the time
        name = signal.Signals(self._asked).name
        raise Stopped(
            self._asked, f"{self._run}: saved and stopped by {name}; resume with --resume {self._run}"
        ) from None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL if self._alone else signal.SIG_IGN)
        self._end = threading.Timer(PATIENCE, self._exit)
        self._end.daemon = True
        self._end.start()
        if self._saves:
            os.write(2, b"stopping; Ctrl-C again exits without saving\n")  # print is not reentrant
            if self._save is not None:
                raise Stopped(number)

    def _exit(self) -> None:
        assert self._asked is not None
        if self._saves:
            what = "saved, but did not end in time" if self._saved else "no time to save"
            os.write(2, f"error: {self._run}: {what}; resume with --resume {self._run}\n".encode())
        os._exit(128 + self._asked)
