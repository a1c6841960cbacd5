"""Folders that are in use, stop requests, and messages of system errors; tests/faults has them in processes."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from customized_grpo.config import ConfigError
from customized_grpo.trainer.folder import check_unused
from customized_grpo.trainer.locking import claim
from customized_grpo.utils.records import move_folder, sweep, write_bytes, writing
from customized_grpo.utils.stopping import Stopped, Stopping
from customized_grpo.utils.terminal import describe_os_error


def test_incomplete_files_of_killed_processes_are_removed_and_are_no_result(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123.tmp").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".000002.partial" / "trainable").mkdir(parents=True)
    (tmp_path / "checkpoints" / "000001").mkdir()
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "checkpoints", tmp_path / "checkpoints" / "000001"]
    (tmp_path / ".config.yaml.7.tmp").touch()
    with pytest.raises(ConfigError, match="holds something already"):
        check_unused(tmp_path)
    (tmp_path / "checkpoints" / "000001").rmdir()
    (tmp_path / "checkpoints").rmdir()
    with claim(tmp_path):
        pass
    check_unused(tmp_path)  # neither is a lock a result


def test_a_moved_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old, new = tmp_path / "lora", tmp_path / ".lora.partial"
    for folder in (old, new):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / folder.name).touch()
    move_folder(new, old)
    assert [path.name for path in tmp_path.rglob("*")] == ["lora", "inner", ".lora.partial"]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore this process's signal handlers, which a stop leaves changed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ask(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.usefixtures("handlers")
def test_a_stop_waits_while_it_is_forbidden_and_saves_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done: list[object] = []
    monkeypatch.setattr(os, "_exit", done.append)
    stopping = Stopping(tmp_path)

    def save() -> None:
        stopping._exit()  # the time is over while it saves
        done.append("saved")

    def work() -> None:
        with stopping:
            stopping.allow(lambda: done.append("never"))
            stopping.forbid()
            ask(signal.SIGTERM)
            done.append("still at work")
            stopping.allow(save)
            done.append("never")

    with pytest.raises(Stopped, match="saved and stopped by SIGTERM; resume with --resume") as stopped:
        work()
    assert done == ["still at work", 143, "saved"] and stopped.value.code == 143
    assert f"error: {tmp_path}: no time to save; resume with --resume" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a second Ctrl-C is the kernel's"
    assert stopping._end is not None and stopping._end.is_alive(), "what ends late is still ended"
    stopping._end.cancel()
    stopping._end.function()
    assert "saved, but did not end in time" in capfd.readouterr().err


def test_without_a_request_nothing_is_changed(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stopping(tmp_path) as stopping:
        stopping.allow(lambda: pytest.fail("nobody asked"))
    with pytest.raises(ZeroDivisionError), Stopping(tmp_path):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_process_that_does_not_save_continues(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stopping(tmp_path, saves=False, alone=False) as stopping:
        stopping.allow(lambda: pytest.fail("another one saves"))
        ask(signal.SIGINT)
        stopping.allow(lambda: pytest.fail("another one saves"))
    assert stopping._end is not None
    stopping._end.cancel()
    assert signal.getsignal(signal.SIGINT) == before


def test_errors_of_the_disk_name_the_path_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "config.yaml"
    with pytest.raises(OSError, match="No space left") as raised, writing(tmp_path, "resume with --resume run"):
        write_bytes(path, b"x")
    message = describe_os_error(raised.value)
    assert message.startswith(f"{path}: no space left on device; ") and message.endswith("; resume with --resume run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left on device") as raised, writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path)
    with pytest.raises(SafetensorError), writing(tmp_path):
        raise SafetensorError("invalid header")
