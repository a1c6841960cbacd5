"""Files of a run that survive a kill: JSON lines that are read back whole, files and folders replaced in one move."""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from safetensors import SafetensorError

#: Errors of a write that do not name the file by themselves.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_TEMPORARY, _PARTIAL = ".tmp", ".partial"


class RecordError(ValueError):
    """A record that cannot be written or read; the message is one line that names the file."""


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line to a file of JSON lines; it is on the disk when this returns. One writer at a time.

    An incomplete last line, left by a killed process, is removed first. Numbers that are not finite become null.
    RecordError if a value has no JSON form; nothing is written then.
    """
    line = _json(path, record) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.seek(0)
            tail = file.read().rpartition(b"\n")[2]
            if _parse(tail) is None:
                file.truncate(end - len(tail))
            else:
                file.write(b"\n")
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return a file's records in order, without an incomplete last line. RecordError if it is missing or damaged."""
    return [record for _, record in _lines(path)]


def check_iterations(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Raise RecordError unless each record, of the file at `path`, has an integer `iteration`."""
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("iteration"), int):
            raise RecordError(f"{path}:{number}: iteration is missing or not a whole number; remove the line")


def truncate_records(path: Path, iteration: int) -> int:
    """Remove the records made after `iteration`, and return their number. A missing file stays missing.

    Raises RecordError if a line is not a JSON object, or has no integer `iteration`.
    """
    if not path.exists():
        return 0
    lines = _lines(path)
    check_iterations(path, (record for _, record in lines))
    kept = [line for line, record in lines if record["iteration"] <= iteration]
    write_bytes(path, b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept)


def check_regular(path: Path, name: str | None = None) -> None:
    """Raise RecordError, which may show another `name`, unless `path` is a regular file or absent."""
    if not os.path.lexists(path):
        return
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
    kind = stat.S_IFMT(path.lstat().st_mode)
    if kind != stat.S_IFREG:
        raise RecordError(
            f"{name or path}: is {kinds.get(kind, 'a device or socket')}, which is never replaced; give the name of a "
            "regular file"
        )


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file of at most `most` bytes: a pipe or a device would block, or never end.

    Raises RecordError if it is another kind or larger, and OSError if it cannot be read.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode) and str(path) != os.devnull:  # which is empty
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or device"
        raise RecordError(f"{path}: is {kind}; give a regular file")
    if most is not None and state.st_size > most:
        raise RecordError(f"{path}: {state.st_size / 2**20:.0f} MB, more than {most / 2**20:g} MB; give another file")
    return path.read_bytes()


def read_text(path: Path, most: int | None = None) -> str:
    """Return the text of a regular file of at most `most` bytes, without a byte order mark. Raises RecordError."""
    try:
        return read_regular(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); correct the path") from error


def write_json(path: Path, obj: Any) -> None:
    """Write JSON values, indented, in one move. Raises RecordError and changes nothing if a value has no JSON form."""
    write_bytes(path, _json(path, obj, indent=2) + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a regular file in one move; it is on the disk when this returns. On errors the old file is unchanged."""
    check_regular(path)
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
    _flush(path.parent)  # the new name is only safe once its folder is on the disk


def temporary_folder(folder: Path) -> Path:
    """Create an empty temporary folder beside `folder`; fill it, then `move_folder` gives it the name."""
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def move_folder(partial: Path, folder: Path) -> None:
    """Flush everything in `partial` to the disk, then rename it to `folder`, replacing an old folder of that name."""
    if folder.is_symlink():
        raise RecordError(f"{folder}: is a symbolic link, which is never replaced; remove it, or put a folder there")
    with writing(partial):
        for inner in (*sorted(partial.rglob("*"), reverse=True), partial):
            _flush(inner)
    if folder.exists():
        drop_folder(folder)
    partial.replace(folder)
    _flush(folder.parent)


def drop_folder(folder: Path) -> None:
    """Remove a folder; it is renamed first, so that no part of it is ever under its name."""
    old = folder.with_name(f".{folder.name}.old{_PARTIAL}")
    shutil.rmtree(old, ignore_errors=True)
    folder.replace(old)
    shutil.rmtree(old)


def is_partial(path: Path) -> bool:
    """Return whether a file or folder is incomplete: being written, or left by a killed process."""
    return path.name.startswith(".") and path.suffix in (_TEMPORARY, _PARTIAL)


def sweep(folder: Path) -> None:
    """Remove incomplete files and folders of killed processes in a folder to which no other process writes."""
    for file in folder.rglob(f".*{_TEMPORARY}"):
        file.unlink(missing_ok=True)
    for partial in list(folder.rglob(f".*{_PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Add the path, and a `remedy`, to errors of a full or broken disk; turn those of safetensors into OSErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            # A copy names its source first.
            error.filename = error.filename2 or error.filename or str(path)
            error.filename2 = None
            if remedy is not None:
                error.add_note(remedy)
        raise
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        found = OSError(code, os.strerror(code), str(path))
        if remedy is not None:
            found.add_note(remedy)
        raise found from error


def _json(path: Path, value: Any, indent: int | None = None) -> bytes:
    def plain(other: Any) -> Any:
        if hasattr(other, "item"):  # a number of NumPy or torch
            return other.item()
        raise TypeError(f"{type(other).__name__} has no JSON form; give a number, text or a list")

    try:
        return to_json(value, indent=indent, inf_nan_mode="null", fallback=plain)
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path}: {str(error).splitlines()[0]}") from error


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each complete line without its newline, and its record."""
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; give the metrics.jsonl of a run") from None
    *whole, tail = data.split(b"\n")
    if _parse(tail) is not None:  # no beginning of a JSON object is one itself: only its newline is missing
        whole.append(tail)
    lines = []
    for number, line in enumerate(whole, start=1):
        record = _parse(line)
        if record is None:
            raise RecordError(f"{path}:{number}: not a JSON object; remove the line")
        lines.append((line, record))
    return lines


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
