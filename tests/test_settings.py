"""The reference of settings agrees with the settings, and docs/settings.md is up to date."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from customized_grpo.cli.information import describe_settings, settings_page
from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.config.reading import flat
from customized_grpo.config.reference import ENTRY, settings

ALL = settings()
EMPTY = Path(os.devnull)
PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def test_every_key_is_listed_once_and_has_a_meaning() -> None:
    keys = [one.key for one in ALL]
    assert len(keys) == len(set(keys))
    listed = {key for key in keys if not key.startswith("rollout.window.")} - {"policy.lora"}
    text = "\n".join(flat(Config().model_dump(mode="json")))
    text = re.sub(r"^rewards\.\d+", f"rewards.{ENTRY}", text, flags=re.MULTILINE)
    text = re.sub(r"^(evaluation\.monitors)\..*", r"\1", text, flags=re.MULTILINE)
    assert listed == {"rewards", *text.splitlines()}
    assert [one.key for one in ALL if not one.meaning] == []


def test_listed_defaults_are_the_defaults() -> None:
    empty, window = load_config(EMPTY), load_config(EMPTY, ["rollout.window={}"])
    for one in ALL:
        if f".{ENTRY}." in one.key or one.default == "as below" or one.default.endswith((" entry", " entries")):
            continue
        expected = window if one.key.startswith("rollout.window.") else empty
        assert load_config(EMPTY, [f"{one.key}={one.default}"]) == expected, one.key


BEYOND = {"at least": -1, "above": 0, "at most": 1, "below": 0, "multiple of": 1}


def test_values_beyond_a_bound_are_refused() -> None:
    for one in ALL:
        for bound, number in re.findall(r"(at least|above|at most|below|multiple of) (-?[\d.]+)", one.values):
            key = one.key.replace(f".{ENTRY}.", ".0.")
            with pytest.raises(ConfigError, match=re.escape(key)) as refused:
                load_config(overrides=[f"{key}={float(number) + BEYOND[bound]:.12g}"])
            assert len(refused.value.problems) == 1


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "cgrpo settings --markdown > docs/settings.md"


def test_a_section_is_shown_or_the_nearest_is_named() -> None:
    console = Console(width=160)
    with console.capture() as shown:
        describe_settings(console, "rollout.window")
    assert {word for word in shown.get().split() if word.startswith("rollout.")} == {
        one.key for one in ALL if one.key.startswith("rollout.window")
    }
    with pytest.raises(ConfigError, match=r"trian: no such setting; did you mean train\?"):
        describe_settings(console, "trian")
    with pytest.raises(ConfigError, match="no such setting; omit it to list all"):
        describe_settings(console, "~")
