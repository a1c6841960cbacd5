"""What a run leaves behind as text: JSON lines that survive a kill, and files replaced in one move.

A process may die at any byte. A record is therefore either read back whole or not at all, and a
file that is rewritten is the old one or the new one, never a half of each. A folder of others'
files is filled aside and moved.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

#: What a disk may answer to a write without saying where.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_TEMPORARY, _PARTIAL = ".tmp", ".partial"


class RecordError(ValueError):
    """A record that cannot be written or read; its text is one line with the file and the key."""


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line to a file of records, and return once it is on the disk.

    What a killed process left half written at the end is removed first. One writer at a time.

    Args:
        path: the .jsonl file; made, with its folder, where it is not there.
        record: JSON values. Any real number is taken, those of numpy included; one that is not
            finite is written as null.

    Raises:
        RecordError: if a value is not of JSON, before anything is written.
    """
    line = json.dumps(_plain(record, path, ""), allow_nan=False, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("a+b") as file:
        _mend(file.fileno())
        file.write(line.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, in its order. A last line cut short by a kill is left out.

    Raises:
        RecordError: if there is no such file, or if any other line is not a JSON object.
    """
    return [record for _, record in _lines(path)]


def truncate_records(path: Path, iteration: int) -> int:
    """Drop the records made after `iteration`, for a run that resumes from its checkpoint.

    The file is replaced in one move; the lines that stay, stay as they were. A file that is not
    there is left so.

    Returns:
        How many records were dropped.

    Raises:
        RecordError: if a line is not a JSON object, or holds no whole number as `iteration`.
    """
    if not path.exists():
        return 0
    lines = _lines(path)
    for number, (_, record) in enumerate(lines, start=1):
        if not isinstance(record.get("iteration"), int):
            raise RecordError(f"{path}:{number}: iteration is missing or not a whole number; remove the line")
    kept = [line for line, record in lines if record["iteration"] <= iteration]
    write_bytes(path, b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept)


def check_place(path: Path, option: str) -> None:
    """Raises RecordError, before there is anything to write, where `path`, which `option` gave, can be no file."""
    if path.is_dir() or any(above.exists() and not above.is_dir() for above in path.parents):
        raise RecordError(f"{option} {path}: cannot be written there; give a file's name in a folder")


def write_json(path: Path, obj: Any) -> None:
    """Write JSON values, indented, in one move. Numbers that are not finite become null.

    Raises:
        RecordError: if a value is not of JSON; the file is then as it was.
    """
    text = json.dumps(_plain(obj, path, ""), allow_nan=False, ensure_ascii=False, indent=2)
    write_bytes(path, (text + "\n").encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Make `data` the whole of a file in one move, on the disk when this returns.

    The folder is made where it is not there. Whatever goes wrong, the old file stays whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with writing(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)  # the new name itself is only safe once its folder is on the disk


def aside(folder: Path) -> Path:
    """An empty folder beside `folder` to fill before `move_folder` gives it that name."""
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def move_folder(partial: Path, folder: Path) -> None:
    """Have all that `partial` holds on the disk, then make it `folder`, in place of what had that name."""
    with writing(partial):
        for inner in sorted(partial.rglob("*"), reverse=True):
            _flush(inner)
        _flush(partial)
    if folder.exists():
        drop_folder(folder)
    partial.replace(folder)
    _flush(folder.parent)


def drop_folder(folder: Path) -> None:
    """Remove a folder: at no moment is there a part of it under its name."""
    going = folder.with_name(f".{folder.name}.old{_PARTIAL}")
    shutil.rmtree(going, ignore_errors=True)
    folder.replace(going)
    shutil.rmtree(going)


def is_partial(path: Path) -> bool:
    """Whether a file or folder is one that is still being written, or was when its process was killed."""
    return path.name.startswith(".") and path.suffix in (_TEMPORARY, _PARTIAL)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder and below it. None may write there meanwhile."""
    for file in folder.rglob(f".*{_TEMPORARY}"):
        file.unlink(missing_ok=True)
    for partial in list(folder.rglob(f".*{_PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have the errors of a full or broken disk say where: a write's own has no path, that of safetensors no number."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_DISK and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def _plain(value: Any, path: Path, key: str) -> Any:
    """The value in types that JSON has, `key` being where it stands (dotted) for the message."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v, path, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, path, f"{key}[{i}]") for i, v in enumerate(value)]
    raise RecordError(f"{path}: {key or 'the value'} is a {type(value).__name__}; give a number, text or a list")


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each whole line without its newline, and the record it holds."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{path}: no records there; give the file that a run writes") from None
    *whole, tail = data.split(b"\n")
    lines = []
    for number, line in enumerate(whole, start=1):
        record = _parse(line)
        if record is None:
            raise RecordError(f"{path}:{number}: not a JSON object; remove the line")
        lines.append((line, record))
    # No beginning of a JSON object is one itself: a tail that parses lacks its newline alone.
    last = _parse(tail)
    return lines if last is None else [*lines, (tail, last)]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _mend(descriptor: int) -> None:
    """Bring a file open for appending to the end of a line, dropping a last line cut short."""
    with open(descriptor, "r+b", closefd=False) as file:
        end = file.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start > 0 and b"\n" not in tail:
            step = min(start, 4096)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        tail = tail.rpartition(b"\n")[2]
        if not tail:
            return
        if _parse(tail) is None:
            file.truncate(end - len(tail))
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
