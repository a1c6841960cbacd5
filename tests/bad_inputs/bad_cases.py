"""Bad input: something written to a folder, the commands that read it there, and the errors that they must print."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers  # noqa: F401 - here, since its log goes to the stderr that its import finds, and `invoke` has its own
import transformers  # noqa: F401 - likewise
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from customized_grpo.cli import app
from experiments.study.__main__ import main as study

#: Arguments of cgrpo; those of `python -m experiments.study` after the word study.
Command = list[str]
#: Parts of one line of error.
Message = tuple[str, ...]

STUDY = Typer()
STUDY.command()(study)


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        make: Writes the input to a folder, and returns the commands to run there.
        message: Parts of each line of error, in order; empty if the input is to be used.
        check: Asserts that the input was used as intended; gets the folder and the output of the last command.
    """

    kind: str
    name: str
    make: Callable[[Path], list[Command]]
    message: tuple[Message, ...] = ()
    check: Callable[[Path, str], None] | None = None


#: Ends a training in one known line as soon as its data are read and before a model is loaded.
NO_MODEL = ["--set", "policy.path=./nowhere"]
#: The settings of the embedded model, which a case is laid over.
EMBEDDED = ["--config", "embedded"]
NO_MODEL_MESSAGE = ("policy.path: './nowhere': no such folder",)


def training(*arguments: str) -> Command:
    return ["train", "--out", "run", *arguments]


def scoring(*arguments: str) -> Command:
    """Scores images by a reward that needs no model."""
    return ["score", "--reward", "copy-paste", "--role", "guard", *arguments]


def photo(folder: Path, name: str = "good.png") -> str:
    Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(folder / name)
    return name


def pairs(folder: Path, *lines: object, name: str = "pairs.jsonl") -> str:
    """A file of JSON lines; a text or bytes stand as they are."""
    raw = [
        one if isinstance(one, bytes) else one.encode() if isinstance(one, str) else json.dumps(one).encode()
        for one in lines
    ]
    (folder / name).write_bytes(b"\n".join(raw) + b"\n")
    return name


@dataclass(frozen=True)
class Outcome:
    code: int
    lines: list[str]
    printed: str


def invoke(command: Sequence[str]) -> Outcome:
    """Run a command in this process. Fails on anything but an exit, of which a user would see a traceback."""
    with warnings.catch_warnings(record=True) as warned:
        name, *arguments = command
        done = CliRunner().invoke(STUDY, arguments) if name == "study" else CliRunner().invoke(app, list(command))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert "Traceback" not in done.output
    unwanted = [one for one in warned if not issubclass(one.category, DeprecationWarning | FutureWarning)]
    assert not unwanted, f"a library's warning beside the line: {unwanted[0].message}"
    return Outcome(done.exit_code, [line for line in done.stderr.splitlines() if line.strip()], done.stdout)


def hold(case: Case, folder: Path) -> None:
    """Assert that the commands of a case print its errors, or none, in the working directory `folder`."""
    for command in case.make(folder):
        before = {path.name for path in folder.iterdir()}
        done = invoke(command)
        message = case.message
        if not message and command[-2:] == NO_MODEL:
            message = (NO_MODEL_MESSAGE,)
        assert done.code == (2 if message else 0), (command, done)
        assert len(done.lines) == len(message), (command, done.lines)
        for line, parts in zip(done.lines, message, strict=True):
            assert line.startswith("error: ") and line.isprintable(), line
            assert all(part in line for part in parts), (line, parts)
        if message:
            assert {path.name for path in folder.iterdir()} == before, "a refused input leaves nothing behind"
    if case.check is not None:
        case.check(folder, done.printed)
