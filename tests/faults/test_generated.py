"""Generated settings. `CGRPO_FAULT_EXAMPLES=500 pytest tests/faults/test_generated.py -s` tries many;
`python -m tests.faults --settings N` random ones.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import load_config

from .generated import EXAMPLES, TINY, Outcome, generated, leaves, try_setting


def test_any_value_of_a_settings_type_is_read_or_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def check(key: str, value: Any) -> Outcome:
        changes = {**TINY, key: value}
        problems: tuple[str, ...] = ()
        try:
            load_config(None, [f"{name}={json.dumps(one, ensure_ascii=False)}" for name, one in changes.items()])
        except ConfigError as error:
            problems = error.problems
        assert all(line and "\n" not in line for line in problems), (key, value, problems)
        return "refused" if problems else "trained"

    found = generated(check, 8 * EXAMPLES, number=0)
    with capsys.disabled():
        print(f"\n{found.total()} settings read: {dict(found)}")
    assert len(leaves()) > 80 and found["trained"] and found["refused"]


def test_any_value_of_a_settings_type_trains_or_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = generated(try_setting, max(2, EXAMPLES // 6), number=0)
    with capsys.disabled():
        print(f"\n{found.total()} settings trained: {dict(found)}")
    assert found.total() >= 2
