"""Models of the Hub without a connection: one line, at once, unless there is a copy."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from customized_grpo.config import PolicyConfig, RewardConfig
from customized_grpo.policies import build_policy
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.utils.hub import ModelError, _unreachable, loadable
from customized_grpo.utils.outlines import config_reader


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unreachable.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_an_unknown_model_is_refused_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    reason = r"nobody/nothing: is not in the local cache, and the Hub cannot be reached \(.*\); connect once, or give"
    with pytest.raises(ModelError, match=rf"^policy\.path: {reason}"):
        build_policy(PolicyConfig(path="nobody/nothing"))
    with pytest.raises(RewardError, match=f"reward 'dino': .*{reason}"):
        build_reward(RewardConfig(kind="dino", role="identity", path="nobody/nothing"), "cpu")
    with pytest.raises(ModelError, match=reason):
        config_reader("nobody/nothing")
    assert time.monotonic() - began < 10
    assert "Retrying" not in capfd.readouterr().err


def test_one_that_is_here_or_has_a_copy_needs_no_hub(tmp_path: Path) -> None:
    assert loadable(str(tmp_path)) == tmp_path
    (tmp_path / "hub" / "models--me--mine" / "snapshots" / "abc").mkdir(parents=True)
    with pytest.raises(ModelError):
        loadable("me/mine")
    (tmp_path / "hub" / "models--me--mine" / "snapshots" / "abc" / "config.json").touch()
    assert loadable("me/mine") == "me/mine"


def test_without_a_connection_by_choice_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="it is offline by HF_HUB_OFFLINE"):
        loadable("nobody/nothing")
    assert _unreachable.cache_info().currsize == 0
