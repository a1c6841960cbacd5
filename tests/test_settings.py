"""What is said of every setting holds: keys, defaults, bounds; and the page that lists them is of this version."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from customized_grpo.cli.information import describe_settings, settings_page
from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.config.reference import ENTRY, Setting, settings

ALL = settings()
EMPTY = Path(os.devnull)
PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def leaves(values: Any, place: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{place}.{key}" if place else key)
    elif isinstance(values, list) and values and isinstance(values[0], dict) and place == "rewards":
        yield place
        yield from leaves(values[0], f"{place}.{ENTRY}")
    else:
        yield place


def test_every_key_of_a_run_is_told_of_once_and_has_a_meaning() -> None:
    keys = [one.key for one in ALL]
    assert len(keys) == len(set(keys))
    known = set(leaves(Config().model_dump(mode="json")))
    told = {key for key in keys if not key.startswith("rollout.window.")} - {"policy.lora"}
    assert told == known
    assert [one.key for one in ALL if not one.meaning] == []


@pytest.mark.parametrize("one", [one for one in ALL if f".{ENTRY}." not in one.key], ids=lambda one: one.key)
def test_the_default_that_is_told_is_the_default(one: Setting) -> None:
    if one.default == "as below" or one.default.endswith((" entry", " entries")):
        return
    found = load_config(EMPTY, [f"{one.key}={one.default}"])
    if not one.key.startswith("rollout.window."):  # which makes a window of the rest of its defaults
        assert found == load_config(EMPTY) == Config()
    else:
        assert found == load_config(EMPTY, ["rollout.window={}"])


BEYOND = {"at least": -1, "above": 0, "at most": 1, "below": 0, "multiple of": 1}
BOUNDED = [
    (one, float(number) + BEYOND[bound])
    for one in ALL
    for bound, number in re.findall(r"(at least|above|at most|below|multiple of) (-?[\d.]+)", one.values)
]


@pytest.mark.parametrize(("one", "value"), BOUNDED, ids=lambda x: x.key if isinstance(x, Setting) else f"{x:g}")
def test_what_lies_beyond_a_bound_is_refused(one: Setting, value: float) -> None:
    key = one.key.replace(f".{ENTRY}.", ".0.")
    with pytest.raises(ConfigError, match=re.escape(key)) as told:
        load_config(overrides=[f"{key}={value:g}"])
    assert len(told.value.problems) == 1


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "cgrpo settings --markdown > docs/settings.md"


def test_a_part_is_shown_or_the_nearest_is_named() -> None:
    console = Console(width=160)
    with console.capture() as shown:
        describe_settings(console, "rollout.window")
    assert {word for word in shown.get().split() if word.startswith("rollout.")} == {
        one.key for one in ALL if one.key.startswith("rollout.window")
    }
    with pytest.raises(ConfigError, match=r"trian: no such setting; did you mean train\?"):
        describe_settings(console, "trian")
    with pytest.raises(ConfigError, match="no such setting; leave it out for all"):
        describe_settings(console, "~")
