"""Folders for one process alone, requests to end, and what is said of a system's errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from customized_grpo.config import VERSION, ConfigError
from customized_grpo.config.loading import load_config, save_config
from customized_grpo.trainer.folder import check_unused
from customized_grpo.trainer.locking import claim
from customized_grpo.utils.records import move_folder, sweep, write_bytes, writing
from customized_grpo.utils.stopping import Stopped, Stopping
from customized_grpo.utils.terminal import told_os_error

HOLDER = """
import sys, time
from pathlib import Path
from customized_grpo.trainer.locking import claim
with claim(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(60)
"""


def test_a_claim_is_refused_to_others_and_ends_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on .*; wait for it, or end it") as told:
            claim(tmp_path).__enter__()
        assert "\n" not in str(told.value)
    finally:
        holder.kill()
        holder.wait()
    with claim(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    check_unused(tmp_path)  # a lock alone is no result


def test_what_killed_processes_left_is_swept_and_is_no_result(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123.tmp").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".000002.partial" / "trainable").mkdir(parents=True)
    (tmp_path / "checkpoints" / "000001").mkdir()
    sweep(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "checkpoints",
        "checkpoints/000001",
    ]
    (tmp_path / ".config.yaml.7.tmp").touch()
    with pytest.raises(ConfigError, match="holds something already"):
        check_unused(tmp_path)
    (tmp_path / "checkpoints" / "000001").rmdir()
    (tmp_path / "checkpoints").rmdir()
    check_unused(tmp_path)


def test_a_moved_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old, new = tmp_path / "lora", tmp_path / ".lora.partial"
    for folder in (old, new):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / folder.name).touch()
    move_folder(new, old)
    assert [path.name for path in tmp_path.rglob("*")] == ["lora", "inner", ".lora.partial"]


def test_settings_of_another_version_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(load_config(), path)
    assert path.read_text(encoding="utf-8").startswith(f"version: {VERSION}\n")
    path.write_text(path.read_text(encoding="utf-8").replace(f"version: {VERSION}", "version: 0", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml:1: version: these are settings of another version") as told:
        load_config(path)
    assert "\n" not in str(told.value) and str(told.value).endswith("given 0")


def test_a_request_waits_while_it_is_forbidden_and_saves_where_it_is_allowed(tmp_path: Path) -> None:
    before, kept = signal.getsignal(signal.SIGTERM), []
    stopping = Stopping(tmp_path)

    def work() -> None:
        with stopping:
            stopping.allow(lambda: kept.append("first"))
            stopping.forbid()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            kept.append("still at work")
            stopping.allow(lambda: kept.append("second"))
            kept.append("never")

    try:
        with pytest.raises(Stopped, match="saved and stopped by SIGTERM; go on by --resume") as stopped:
            work()
        assert kept == ["still at work", "second"]
        assert stopped.value.code == 143
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a second Ctrl-C is the kernel's"
        assert stopping._end is not None
        stopping._end.cancel()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_late_end_says_that_there_was_no_time_only_where_nothing_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    stopping = Stopping(tmp_path)

    def save() -> None:
        stopping._leave()  # the time is over while it saves

    def work() -> None:
        with stopping:
            stopping.allow(save)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    try:
        with pytest.raises(Stopped, match="saved and stopped by SIGTERM"):
            work()
        assert f"error: {tmp_path}: no time to save; go on by --resume" in capfd.readouterr().err
        assert stopping._end is not None and stopping._end.is_alive(), "what ends late is still ended"
        stopping._end.function()
        told = capfd.readouterr().err
        assert "no time to save" not in told
        assert told == f"error: {tmp_path}: saved, and left before all else had ended; go on by --resume {tmp_path}\n"
        assert left == [143, 143]
    finally:
        if stopping._end is not None:
            stopping._end.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_without_a_request_nothing_is_changed(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stopping(tmp_path) as stopping:
        stopping.allow(lambda: pytest.fail("nobody asked"))
    with pytest.raises(ZeroDivisionError), Stopping(tmp_path):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_process_that_does_not_save_goes_on(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stopping(tmp_path, saves=False, alone=False) as stopping:
        stopping.allow(lambda: pytest.fail("another one saves"))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        stopping.allow(lambda: pytest.fail("another one saves"))
    assert stopping._end is not None
    stopping._end.cancel()
    assert signal.getsignal(signal.SIGINT) == before


def test_errors_of_the_disk_say_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "config.yaml"
    with pytest.raises(OSError, match="No space left") as raised:
        write_bytes(path, b"x")
    assert told_os_error(raised.value) == (
        f"{path}: no space left on device; free some disk space and try again; a run resumes with --resume"
    )
    assert not list(tmp_path.iterdir())
    assert told_os_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")).startswith("[Errno 2]")
    assert told_os_error(OSError("plain")) == "plain"


def test_an_error_of_safetensors_is_one_of_the_system(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="No space left on device") as raised, writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path)
    with pytest.raises(SafetensorError), writing(tmp_path):
        raise SafetensorError("invalid header")
