"""Records survive a kill at any byte; rewritten files are the old one or the new one."""

import json
import math
import os
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_records_are_read_back_in_order_with_finite_numbers_or_null(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.jsonl"
    append_record(path, {"iteration": 1, "kl": 1 / 3, "name": "größe\n", "ok": True, "x": None})
    append_record(path, {"a": math.nan, "b": [math.inf, 1], "c": {"d": np.float32("nan")}, "e": np.float32(0.5)})
    assert read_records(path) == [
        {"iteration": 1, "kl": 1 / 3, "name": "größe\n", "ok": True, "x": None},
        {"a": None, "b": [None, 1], "c": {"d": None}, "e": 0.5},
    ]
    assert path.read_bytes().count(b"\n") == 2


def test_a_value_that_json_lacks_is_an_error_of_one_line_and_nothing_is_written(path: Path) -> None:
    with pytest.raises(RecordError, match=r"metrics\.jsonl: .*object has no JSON form; give") as caught:
        append_record(path, {"a": {"b": [1, object()]}})
    assert "\n" not in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("text", ["ü", "x" * 10_000])
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 12, 20])
def test_a_last_line_cut_anywhere_is_omitted_and_then_replaced(path: Path, text: str, cut: int) -> None:
    append_record(path, {"iteration": 1})
    append_record(path, {"iteration": 2, "s": text})
    path.write_bytes(path.read_bytes()[:-cut])
    # Without only its newline a record is still whole.
    left = [{"iteration": 1}, *([{"iteration": 2, "s": text}] if cut == 1 else [])]
    assert read_records(path) == left
    append_record(path, {"iteration": 9})
    assert read_records(path) == [*left, {"iteration": 9}]
    assert path.read_bytes().count(b"\n") == len(left) + 1


@pytest.mark.parametrize("bad", [b"{oops", b"[1]", b"", b"\xff\xfe"])
def test_a_missing_file_is_an_error_and_a_bad_line_is_named_by_its_number(path: Path, bad: bytes) -> None:
    with pytest.raises(RecordError, match=r"^[^\n]*metrics\.jsonl: no such file; give[^\n]*$"):
        read_records(path)
    path.write_bytes(b'{"iteration": 1}\n' + bad + b'\n{"iteration": 3}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl:2: not a JSON object; remove the line$"):
        read_records(path)


def test_truncating_keeps_the_lines_up_to_the_iteration_as_they_were(path: Path) -> None:
    assert truncate_records(path, 3) == 0 and not path.exists()
    path.write_bytes(b'{"iteration":1,  "a": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"iter')
    assert truncate_records(path, 2) == 1
    assert path.read_bytes() == b'{"iteration":1,  "a": 1}\n{"iteration": 2}\n'
    assert truncate_records(path, 0) == 2
    assert path.read_bytes() == b""
    path.write_text('{"iteration": 1}\n{"kl": 2}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl:2: iteration is missing"):
        truncate_records(path, 0)
    assert len(read_records(path)) == 2


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"a": [1, math.nan]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_file_is_on_the_disk_before_its_name_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    mode = path.stat().st_mode
    seen: list[bytes] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        seen.append(path.read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_bytes(path, b"new")
    assert seen == [b"old", b"new"], "the content, then the folder's names"
    assert path.stat().st_mode == mode
