"""Forks processes that train: each runs the command as a user types it, without importing everything again.

A line of JSON asks, a line answers: {"start": {...}} gives {"pid": N}, {"wait": N} gives {"code": N, "processor": S}.
The server itself computes nothing, so that its children start as a process of their own would.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from commands import import_libraries, leave_with, run_typed

from . import sites


def main() -> None:
    import_libraries()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        requested = json.loads(line)
        if "start" in requested:
            pid = os.fork()
            if pid == 0:
                _child(**requested["start"])
            answer: dict[str, Any] = {"pid": pid}
        else:
            _, status, used = os.wait4(requested["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status), "processor": used.ru_utime + used.ru_stime}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _child(
    arguments: list[str],
    folder: str,
    output: str,
    watch: str,
    fault: dict[str, Any] | None = None,
    largest: int | None = None,
    images: bool = False,
    patience: float | None = None,
    limit: int | None = None,
) -> None:
    """Run `cgrpo` with the arguments in a folder; never returns."""

    def run() -> int:
        os.chdir(folder)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream, file in enumerate((os.open(os.devnull, os.O_RDONLY), descriptor, descriptor)):
            os.dup2(file, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            signal.alarm(5 * limit)  # on the clock, of what only waits: other processes may keep the cores busy
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        from customized_grpo.reporting import callbacks
        from customized_grpo.utils import stopping

        if not images:
            callbacks.show = lambda *_: None
        sites.arm(Path(watch), fault)
        if patience is not None:
            stopping.PATIENCE = patience
        return run_typed(arguments)

    leave_with(run)


if __name__ == "__main__":
    main()
