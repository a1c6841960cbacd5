"""Freed memory stays in the process, so that the system does not zero new pages for each iteration."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from customized_grpo.policies.compute import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        some = [torch.zeros(4 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
returned = faults()
assert keep_freed_memory()
faults()
print(returned, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_the_system_hands_out_freed_pages_once() -> None:
    # glibc's first thresholds, which it would otherwise change as memory is freed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
    found = subprocess.run([sys.executable, "-c", _FAULTS], env=environment, check=True, capture_output=True).stdout
    returned, kept = map(int, found.split())
    assert returned > 100 and kept < 0.1 * returned
