"""Counts of what was tried and what came of it, printed when the tests of bad inputs have run."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_cases import COUNTS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.section("bad inputs")
    kinds = dict.fromkeys(kind for kind, _ in COUNTS)
    outcomes = ("refused", "used", "failed")
    rows = [[kind, *(COUNTS[kind, outcome] for outcome in outcomes)] for kind in kinds]
    rows.append(["all", *(sum(COUNTS[kind, outcome] for kind in kinds) for outcome in outcomes)])
    terminalreporter.write_line(f"{'kind':<16}{''.join(f'{outcome:>10}' for outcome in outcomes)}")
    for kind, *numbers in rows:
        terminalreporter.write_line(f"{kind:<16}{''.join(f'{number:>10}' for number in numbers)}")
