"""Freed memory stays with the process, so that the system does not hand it out anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys, torch
from customized_grpo.utils.freed import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        some = [torch.zeros(4 << 20) for _ in range(4)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_the_system_hands_out_freed_pages_once() -> None:
    # Its thresholds as they are at first: by itself glibc moves them as memory is freed, or does not.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
    faults = {}
    for how in ("given back", "kept"):
        command = [sys.executable, "-c", _FAULTS, how]
        faults[how] = int(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert faults["given back"] > 100
    assert faults["kept"] < 0.1 * faults["given back"]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from customized_grpo.utils.freed import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
