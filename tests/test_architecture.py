"""Dependencies point inwards, in the order of rooms that docs/architecture.md tells; the maths knows torch alone."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "customized_grpo"
TABLE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## One iteration")[0]
#: Rooms side by side in a row, the innermost row first.
ROWS = [re.findall(r"`([a-z_]+)(?:/|\.py)`", row) for row in re.findall(r"^\| (`.+?) \|", TABLE, re.MULTILINE)]
PLACE = {room: place for place, row in enumerate(ROWS) for room in row}


def imported(file: Path) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms_known(room: str) -> set[str]:
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else list((PACKAGE / room).rglob("*.py"))
    names = {name for file in files for name in imported(file)}
    return {name.split(".")[1] for name in names if name.startswith("customized_grpo.")} - {room}


def test_every_room_is_told_of_once() -> None:
    rooms = [path.stem for path in PACKAGE.iterdir() if path.suffix in (".py", "") and not path.name.startswith("__")]
    assert sorted(room for row in ROWS for room in row) == sorted(rooms)


@pytest.mark.parametrize("room", PLACE)
def test_a_room_knows_none_but_those_above_it(room: str) -> None:
    assert [other for other in sorted(rooms_known(room)) if PLACE[other] >= PLACE[room]] == []


def test_the_maths_imports_torch_and_nothing_else() -> None:
    names = {name.split(".")[0] for file in (PACKAGE / "method").glob("*.py") for name in imported(file)}
    assert names - set(sys.stdlib_module_names) == {"torch", "customized_grpo"}
    assert rooms_known("method") == set()
