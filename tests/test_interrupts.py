"""Ctrl-C while a command starts: one line and exit code 130, wherever it falls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from customized_grpo.utils import machine

START = ("-X", "importtime", "-c", "from customized_grpo.__main__ import main; main()")


@pytest.mark.parametrize("module", ["inspect", "torch"])
def test_an_interrupt_during_imports_is_one_line(module: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, *START, "train", "--out", "run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job inherits that it is ignored
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            name = line.rpartition("|")[2].strip()  # of what was imported; a package's own name comes last
            if name == module or name.startswith(f"{module}."):
                process.send_signal(signal.SIGINT)
                break
            if "accelerate" in name:  # imported last
                process.kill()
        rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert rest == ["interrupted; saved files remain\n"] and process.returncode == 130, rest
    assert not list(tmp_path.iterdir())


def test_busy_cores_are_hinted_at_unless_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    hint = machine.busy_hint(None)
    assert hint == "other processes use about 3.0 of 4 cores; --threads 1 may be several times faster than 4"
    assert machine.busy_hint(2) is None
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 0.0, 0.0))
    assert machine.busy_hint(None) is None
