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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy.lora.rank", 100_000_000),
        ("policy.reference_sizes", [[1_000_000, 10_000]]),
        ("policy.reference_sizes", []),
        ("policy.height", 16384),
        ("policy.max_sequence_length", 10**9),
        ("rollout.group_size", 10**18),
        ("rollout.steps", 10**8),
        ("train.iterations", 10**21),
        ("train.updates", 10**9),
        ("train.batch_size", 10**30),
        ("evaluation.images", 10**13),
        ("evaluation.data.size", 10**13),
        ("rewards.0.weight", 1e308),
        ("method.gamma", 1e300),
        ("method.std_floor", {"identity": -3}),
        ("train.warmup_iterations", 500),
    ],
)
def test_values_without_bounds_were_tracebacks_or_had_no_end(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, [f"{key}={json.dumps(value)}"])
    assert len(raised.value.problems) == 1 or "reference_sizes" in key
    assert all(key in line for line in raised.value.problems)
