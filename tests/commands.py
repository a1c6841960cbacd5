"""Run commands in processes of their own without importing torch and the like for each.

A server imports the libraries once, and forks a child for each command, in the command's working directory. GPUs are
hidden, because CUDA does not work in a child of a process that has looked for one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

_SECONDS = 600  # time limit of a command
_HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}


def cgrpo(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `cgrpo`, `python -m MODULE` for arguments that begin with -m, or a Python file, in `folder`."""
    return side_by_side([{}], *arguments, folder=folder)[0]


def side_by_side(
    environments: Sequence[Mapping[str, str]], *arguments: str | Path, folder: Path
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command as `cgrpo` does, in processes side by side, each with additional variables of its own."""
    typed = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as temporary:
        processes = [
            {
                "output": f"{temporary}/output-{number}",
                "error": f"{temporary}/error-{number}",
                "environment": {**os.environ, **_HIDDEN, **environment},
            }
            for number, environment in enumerate(environments)
        ]
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({"arguments": typed, "folder": str(folder), "processes": processes}) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server of commands ended"
        streams = [
            [Path(process[name]).read_text(encoding="utf-8", errors="replace") for name in ("output", "error")]
            for process in processes
        ]
    codes = json.loads(answer)["codes"]
    return [
        subprocess.CompletedProcess(["cgrpo", *typed], *ended)
        for ended in zip(codes, *zip(*streams, strict=True), strict=True)
    ]


def run_typed(arguments: list[str]) -> int:
    """Run `cgrpo`, `python -m MODULE ...` or `python FILE.py ...` in this process, and return the exit code."""
    from customized_grpo.__main__ import main

    try:
        if arguments[:1] == ["-m"]:
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[:1] and arguments[0].endswith(".py"):
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            sys.argv = ["cgrpo", *arguments]
            main()
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
    with suppress(AttributeError, ValueError):  # user code has removed or closed it
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
    """Import what most commands need, which takes longer than what they do in the tests.

    Garbage is not collected meanwhile, and later collections skip what is there, which saves a quarter of the time.
    """
    gc.disable()
    for name in ("cli.run", "planning", "policies.flux_kontext", "rewards.alignment", "rewards.similarity"):
        importlib.import_module(f"customized_grpo.{name}")  # not `import`, which a linter would remove as unused
    gc.freeze()
    gc.enable()


def quick_figures(replace: Callable[[type, str, object], None] = setattr) -> None:
    """Save figures without ticks, nor place their labels, which is most of their time; tests/figures shows all."""
    from matplotlib.figure import Figure

    savefig = Figure.savefig

    def save(self: Figure, *arguments: Any, **options: Any) -> None:
        for axes in self.axes:
            axes.xaxis.set_visible(False)
            axes.yaxis.set_visible(False)
        savefig(self, *arguments, **options)

    replace(Figure, "savefig", save)
    replace(Figure, "set_layout_engine", lambda self, layout=None, **options: None)


def _serve() -> None:
    from customized_grpo.cli.app import quiet

    quiet()  # before the libraries are imported
    import_libraries()
    quick_figures()
    # This folder, and the clone's, with `experiments` and `benchmarks`.
    sys.path += map(str, Path(__file__).parents[:2])

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for process in request.pop("processes"):
            pid = os.fork()
            if pid == 0:
                _child(**request, **process)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        answers.write(json.dumps({"codes": codes}) + "\n")
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
