"""What all tests share."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

# Before tqdm is imported: bars of other libraries would stand before the one line that an error is.
os.environ.setdefault("TQDM_DISABLE", "1")
SHARED_OUT = "PYTEST_XDIST_WORKER" in os.environ
if SHARED_OUT:  # Before torch is imported: there is a process for each core, and what tests compute is small.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: The files that take longest, the longest first; one of them begun last would be waited for by all.
LONGEST = (
    "tests/benchmarks_gpu/test_gpu_benchmark.py", "tests/test_docs.py", "tests/training/test_processes.py",
    "tests/test_cli.py", "tests/planning/test_recipes.py", "tests/planning/test_plan_command.py",
    "tests/faults/test_faults.py", "tests/speed/test_bench.py", "tests/bad_inputs/test_bad_inputs.py",
    "tests/training/test_hacking.py", "tests/study/test_study.py", "tests/rewards/test_vlm.py",
    "tests/report/test_page.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, where files are shared out."""
    if SHARED_OUT:
        rank = {file: place for place, file in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Counts of the bad inputs and of what came of them, from all processes that tried some."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    tried = [value for report in called for name, value in report.user_properties if name == "bad input"]
    if not tried:
        return
    counts = Counter((kind, outcome) for kind, outcome in tried)
    terminalreporter.section("bad inputs")
    kinds = dict.fromkeys(kind for kind, _ in tried)
    outcomes = ("refused", "used", "failed")
    rows = [[kind, *(counts[kind, outcome] for outcome in outcomes)] for kind in kinds]
    rows.append(["all", *(sum(counts[kind, outcome] for kind in kinds) for outcome in outcomes)])
    terminalreporter.write_line(f"{'kind':<16}{''.join(f'{outcome:>10}' for outcome in outcomes)}")
    for kind, *numbers in rows:
        terminalreporter.write_line(f"{kind:<16}{''.join(f'{number:>10}' for number in numbers)}")
