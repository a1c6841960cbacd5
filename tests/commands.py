"""Run commands in processes of their own without importing torch and the like for each.

A server imports the libraries once, and forks a child for each command, in the command's working directory. GPUs are
hidden, because CUDA does not work in a child of a process that has looked for one.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

_SECONDS = 600  # time limit of a command
_HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}


def cgrpo(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `cgrpo`, or `python -m MODULE` for arguments that begin with -m, in `folder`."""
    typed = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as temporary:
        output, error = Path(temporary) / "output", Path(temporary) / "error"
        request = {"arguments": typed, "folder": str(folder), "output": str(output), "error": str(error)}
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({**request, "environment": {**os.environ, **_HIDDEN}}) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server of commands ended"
        streams = [path.read_text(encoding="utf-8", errors="replace") for path in (output, error)]
    return subprocess.CompletedProcess(["cgrpo", *typed], json.loads(answer)["code"], *streams)


def run_typed(arguments: list[str]) -> int:
    """Run `cgrpo`, or `python -m MODULE ...`, in this process, and return the exit code."""
    import customized_grpo.cli

    try:
        if arguments[:1] == ["-m"]:
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["cgrpo", *arguments]
            customized_grpo.cli.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def leave_with(run: Callable[[], int]) -> NoReturn:
    """End this forked process with the exit code that `run` returns; 1 and a traceback if it fails."""
    code = 1
    try:
        code = run()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@lru_cache(maxsize=1)
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, __file__]
    environment = {**os.environ, **_HIDDEN}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(server.kill)
    return server


def import_libraries() -> None:
    """Import what most commands need, which takes longer than what they do in the tests."""
    for name in ("cli.run", "planning", "policies.flux_kontext", "rewards.alignment", "rewards.similarity"):
        importlib.import_module(f"customized_grpo.{name}")  # not `import`, which a linter would remove as unused


def _serve() -> None:
    from customized_grpo.cli.app import quiet

    quiet()  # before the libraries are imported
    import_libraries()
    sys.path.append(str(Path(__file__).parents[1]))  # `experiments` and `benchmarks`, as from the clone's folder

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        answers.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")
        answers.flush()


def _child(arguments: list[str], folder: str, output: str, error: str, environment: dict[str, str]) -> None:
    """Never returns."""

    def run() -> int:
        signal.alarm(_SECONDS)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[0] = folder  # as with `python -m`
        written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for place, path, flags in ((0, os.devnull, os.O_RDONLY), (1, output, written), (2, error, written)):
            os.dup2(os.open(path, flags), place)
        return run_typed(arguments)

    leave_with(run)


if __name__ == "__main__":
    _serve()
