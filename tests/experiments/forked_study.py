"""`python -m experiments.study` with forked trainings, which need not import everything again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO

import typer
from commands import leave_with, run_typed

from experiments.study import runner
from experiments.study.__main__ import main


class Forked:
    """The part of `subprocess.Popen` that the study uses, for `python -m customized_grpo ...`."""

    def __init__(self, command: Sequence[str], *, stdout: IO[bytes], stderr: int, env: Mapping[str, str]) -> None:
        assert list(command[1:3]) == ["-m", "customized_grpo"] and stderr == subprocess.STDOUT
        # Until the child has its own handlers, a signal would raise the study's error inside it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        self._pid = os.fork()
        if self._pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.environ.update(env)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            leave_with(lambda: run_typed(list(command[3:])))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def terminate(self) -> None:
        os.kill(self._pid, signal.SIGTERM)


if __name__ == "__main__":
    runner.subprocess = SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT)  # type: ignore[attr-defined, assignment]
    typer.run(main)
