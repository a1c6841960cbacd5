"""Work in a process of its own, so that a crash or an endless call on the device is recorded and survived."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

# Children are forked from a server that has imported the libraries and never used the device.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmarks.gpu.sections", "torch.fx.experimental.symbolic_shapes"])


class WorkerError(RuntimeError):
    """Work failed, crashed its process or took too long; the text is one line."""


class Worker:
    """A child process that runs generator functions on request, one after another.

    Args:
        log: File that the child's standard output and error are appended to.
    """

    def __init__(self, log: str = os.devnull) -> None:
        self._pipe, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs, log))
        self._process.start()
        theirs.close()

    def run(self, function: Callable[..., Iterator[Any]], *args: Any, seconds: float) -> Iterator[Any]:
        """Yield what `function(*args)` yields in the child.

        Raises:
            WorkerError: It raised an exception, ended its process, or took longer than `seconds` and was killed.
        """
        deadline = time.monotonic() + seconds
        self._pipe.send((function, args))
        while True:
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                self.close()
                raise WorkerError(f"took longer than {seconds:.0f} s and was killed")
            try:
                kind, value = self._pipe.recv()
            except EOFError:
                self._process.join()
                code = self._process.exitcode or 0
                ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                raise WorkerError(f"its process ended with {ending}") from None
            if kind == "value":
                yield value
            elif kind == "error":
                raise WorkerError(value)
            else:
                return

    def close(self) -> None:
        """Kill the child and all processes that it has started."""
        pid = self._process.pid
        assert pid is not None
        for kill in (os.killpg, os.kill):  # the group is there once the child has made it
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        self._process.join()


def first_line(error: Exception) -> str:
    """Return the type and the first line of an exception's text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _serve(pipe: Connection, log: str) -> None:
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with suppress(EOFError):
        while True:
            function, args = pipe.recv()
            try:
                for value in function(*args):
                    pipe.send(("value", value))
                pipe.send(("end", None))
            except Exception as error:
                traceback.print_exc()
                pipe.send(("error", first_line(error)))
