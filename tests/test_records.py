"""Records survive a kill at any byte; rewritten files are the old one or the new one."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from customized_grpo.utils.records import (
    RecordError,
    append_record,
    read_records,
    truncate_records,
    write_bytes,
    write_json,
)


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.jsonl"
    made = [{"iteration": i, "kl": i / 3, "name": "größe\n", "ok": True, "x": None} for i in (1, 2)]
    for record in made:
        append_record(path, record)
    assert read_records(path) == made
    assert path.read_bytes().count(b"\n") == 2


def test_numbers_become_finite_floats_or_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_record(
        path,
        {
            "a": math.nan,
            "b": [math.inf, 1],
            "c": {"d": -math.inf},
            "e": np.float32(0.5),
            "f": np.int64(3),
        },
    )
    assert read_records(path) == [{"a": None, "b": [None, 1], "c": {"d": None}, "e": 0.5, "f": 3}]
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_a_value_that_json_lacks_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(RecordError, match=r"metrics\.jsonl: a\.b\[1\] is a set; give") as caught:
        append_record(path, {"a": {"b": [1, {2}]}})
    assert "\n" not in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_last_line_cut_anywhere_is_left_out_and_then_replaced(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"iteration": 1})
    append_record(path, {"iteration": 2, "s": "ü"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    # Without its newline alone a record is still whole.
    left = [{"iteration": 1}] + ([{"iteration": 2, "s": "ü"}] if cut == 1 else [])
    assert read_records(path) == left
    append_record(path, {"iteration": 9})
    assert read_records(path) == [*left, {"iteration": 9}]
    assert path.read_bytes().endswith(b'\n{"iteration": 9}\n')


def test_a_torn_line_longer_than_one_block_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"iteration": 1, "text": "y" * 9000})
    with path.open("ab") as file:
        file.write(b'{"iteration": 2, "text": "' + b"x" * 10_000)
    append_record(path, {"iteration": 2})
    assert [record["iteration"] for record in read_records(path)] == [1, 2]


@pytest.mark.parametrize("bad", [b"{oops", b"[1]", b"", b"\xff\xfe"])
def test_a_bad_line_inside_is_named_by_its_number(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 1}\n' + bad + b'\n{"iteration": 3}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl:2: not a JSON object; remove the line$"):
        read_records(path)


def test_records_that_are_not_there_are_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.jsonl: no records there") as caught:
        read_records(tmp_path / "none.jsonl")
    assert "\n" not in str(caught.value)


def test_truncating_keeps_the_lines_up_to_the_iteration_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration":1,  "a": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"iter')
    assert truncate_records(path, 2) == 1
    assert path.read_bytes() == b'{"iteration":1,  "a": 1}\n{"iteration": 2}\n'
    assert truncate_records(path, 0) == 2
    assert path.read_bytes() == b""
    assert truncate_records(tmp_path / "none.jsonl", 3) == 0
    assert not (tmp_path / "none.jsonl").exists()


def test_truncating_refuses_a_record_without_iteration(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"kl": 2}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl:2: iteration is missing"):
        truncate_records(path, 0)
    assert len(read_records(path)) == 2


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"a": [1, math.nan]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    before = path.read_bytes()
    with pytest.raises(RecordError):
        write_json(path, {"a": object()})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["scores.json"]


def test_data_is_on_the_disk_before_the_name_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen: list[tuple[bool, bytes]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        seen.append((folder, path.read_bytes()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_bytes(path, b"new")
    assert [content for _, content in seen] == [b"old", b"new"]
    append_record(path.with_name("lines"), {"iteration": 1})
    assert len(seen) == 3


def test_a_file_written_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_bytes(tmp_path / "moved", b"")
    assert (tmp_path / "moved").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_killed_while_it_appends_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys, itertools, pathlib\n"
        "from customized_grpo.utils.records import append_record\n"
        "for i in itertools.count(1):\n"
        "    append_record(pathlib.Path(sys.argv[1]), {'iteration': i, 'text': 'x' * 20000})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > 100_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = [record["iteration"] for record in read_records(path)]
    assert len(found) >= 5
    append_record(path, {"iteration": len(found) + 1})
    assert [r["iteration"] for r in read_records(path)] == list(range(1, len(found) + 2))
