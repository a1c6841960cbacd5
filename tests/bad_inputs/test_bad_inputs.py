"""Every bad input ends in exit code 2 and one line for each problem, or is used rightly; none in a traceback."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import bad_commands
import bad_datasets
import bad_images
import bad_prompts
import bad_settings
import bad_weights
import pytest
from bad_cases import Case, hold

CASES = [
    *bad_images.CASES,
    *bad_datasets.CASES,
    *bad_settings.CASES,
    *bad_prompts.CASES,
    *bad_weights.CASES,
    *bad_commands.CASES,
]


DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_input(case: Case, folder: Path, record_property: Callable[[str, object], None]) -> None:
    outcome = "failed"
    try:
        hold(case, folder)
        outcome = "refused" if case.refused else "used"
    finally:
        record_property("bad input", (case.kind, outcome))  # counted by tests/conftest.py


def test_the_document_tells_the_counts() -> None:
    told = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    refused, used = (Counter(case.kind for case in CASES if case.refused is said) for said in (True, False))
    counts = [(kind, str(refused[kind]), str(used[kind])) for kind in dict.fromkeys(case.kind for case in CASES)]
    assert told == [*counts, ("all", str(refused.total()), str(used.total()))]


def test_names_are_told_apart() -> None:
    names = Counter((case.kind, case.name) for case in CASES)
    assert [name for name, count in names.items() if count > 1] == []
