"""Every bad input ends in exit code 2 and one line for each problem, or is used as intended; none in a traceback."""

from __future__ import annotations

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


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_input(case: Case, folder: Path) -> None:
    hold(case, folder)
