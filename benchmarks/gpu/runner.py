"""The parent process: runs sections in processes of their own, survives each of them, keeps what they found."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.goals import goals
from benchmarks.gpu.sections import Section
from customized_grpo.utils.records import write_json

ROOT = Path(__file__).parents[2]
RESULTS = "gpu.json"
LastError = Callable[[], str | None]
"""Reads what a process has printed as its last error."""
_START_LIMIT = 90.0  # seconds until a process has imported what it needs, and begins a section
_TINY_SLACK = 5.0  # times as long as on a GPU may a section take with --tiny


class Run:
    """The sections of one benchmark, and the record of them in `out`/gpu.json, written after every event.

    Args:
        out: folder of the record and of each process's standard error.
        tiny: a small model on a CPU.
        limit: seconds for the whole run.
        command: how the benchmark was started, for the record.
        say: prints a line.
    """

    def __init__(self, out: Path, *, tiny: bool, limit: float, command: str, say: Callable[[str], None]) -> None:
        self._out, self._tiny, self._limit, self._say = out.resolve(), tiny, limit, say
        self._slack = _TINY_SLACK if tiny else 1.0
        self._began = time.monotonic()
        self.record: dict[str, Any] = {
            "command": command,
            "tiny": tiny,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "time_limit": limit,
            "machine": {},
            "seconds": {},
            "results": {},
            "failures": {},
            "skipped": {},
        }

    def run(self, sections: Sequence[Section]) -> None:
        """Run the sections in their order, those that share a process together; again from the next after a crash."""
        with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-") as folder:
            self._run(sections, ["--folder", folder, *(["--tiny"] if self._tiny else [])])
        self._write()

    def _run(self, sections: Sequence[Section], options: list[str]) -> None:
        groups = [(process, list(group)) for process, group in groupby(sections, lambda section: section.process)]
        for place, (process, pending) in enumerate(groups):
            later = sum(one.needs for _, group in groups[place + 1 :] for one in group if not one.optional)
            while pending:
                pending = self._run_process(process, pending, later, options)

    @property
    def _left(self) -> float:
        return self._limit - (time.monotonic() - self._began)

    def _run_process(self, name: str, sections: list[Section], later: float, options: list[str]) -> list[Section]:
        """One process for these sections; returns those that it did not come to."""
        worth = [section for section in sections if self._enough(section, later)]
        if not worth:
            return []
        log = self._out / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        options = [*options, "--until", str(time.time() + self._left), "--later", str(later)]
        with log.open("ab") as errors, _started(worth, options, errors) as process:
            try:
                return self._follow(process, worth, partial(_last_error, log, log.stat().st_size))
            finally:
                _kill(process)

    def _enough(self, section: Section, later: float) -> bool:
        """Whether there is time for a section; where not, the record says so."""
        note = section.shortage(self._left, later)
        if note is not None:
            self._skip(section.name, note)
        return note is None

    def _follow(self, process: subprocess.Popen[str], sections: list[Section], last_error: LastError) -> list[Section]:
        """Record what a process reports until it ends or one of its sections takes too long."""
        limits = {section.name: self._slack * section.limit for section in sections}
        pending = list(sections)
        running: str | None = None
        reported = False  # whether anything came of a section, or this process would be started for ever
        since, limit = time.monotonic(), self._slack * _START_LIMIT
        lines = _lines(process)
        while True:
            try:
                line = lines.get(timeout=max(0.0, min(limit - (time.monotonic() - since), self._left)))
            except queue.Empty:
                running = running or pending[0].name
                self._failed(running, "took too long and was killed", since, last_error)
                break
            if line is None:
                code = process.wait()
                running = running or (None if reported or not pending else pending[0].name)
                if running is not None:
                    self._failed(running, f"the process ended with {_told(code)}", since, last_error)
                break
            event = json.loads(line)
            kind, section = event["event"], event.get("section")
            if kind == "machine":
                self.record["machine"] = event["machine"]
            elif kind == "skip":
                self._skip(section, event["note"])
            elif kind == "start":
                running, since, limit = section, time.monotonic(), limits[section]
                self.record["results"][section] = []
            elif kind == "row":
                self.record["results"][section].append(event["row"])
            elif event["error"] is not None:
                self._failed(section, event["error"], since, None)
            else:
                self._done(section, since)
            if kind in ("skip", "end"):
                pending = [one for one in pending if one.name != section]
                running, reported, since, limit = None, True, time.monotonic(), self._slack * _START_LIMIT
            self._write()
        return [section for section in pending if section.name != running]

    def _done(self, section: str, since: float) -> None:
        seconds = time.monotonic() - since
        self.record["seconds"][section] = seconds
        rows = self.record["results"][section]
        failed = sum("failed" in row for row in rows)
        self._say(f"{section}: {len(rows)} rows in {seconds:.1f} s" + (f", {failed} of them failed" if failed else ""))

    def _failed(self, section: str, error: str, since: float, last_error: LastError | None) -> None:
        seconds = time.monotonic() - since
        self.record["seconds"][section] = seconds
        last = None if last_error is None else last_error()
        self.record["failures"][section] = {"error": error, "last_line": last}
        self._say(f"{section}: FAILED after {seconds:.1f} s, {error}" + (f" ({last})" if last else ""))
        self._write()

    def _skip(self, section: str, note: str) -> None:
        self.record["skipped"][section] = note
        self._say(f"{section}: skipped, {note}")
        self._write()

    def _write(self) -> None:
        self.record["seconds"]["total"] = time.monotonic() - self._began
        self.record["goals"] = goals(self.record["results"])
        write_json(self._out / RESULTS, self.record)


def _started(sections: Sequence[Section], options: list[str], errors: IO[bytes]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.section", *(section.name for section in sections), *options]
    # A session of its own, so that it is killed with the processes that it has started.
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", start_new_session=True
    )


def _lines(process: subprocess.Popen[str]) -> queue.Queue[str | None]:
    """The process's lines as they come, then None."""
    found: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            found.put(line)
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    return found


def _kill(process: subprocess.Popen[str]) -> None:
    """End the process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _told(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_error(log: Path, start: int) -> str | None:
    """The last line from the byte `start` on that names an error, or else the last one."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error:" in line]
    return (named or lines)[-1] if lines else None
