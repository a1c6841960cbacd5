"""No plan asks the hub for anything: what is known of its models is shipped, or in a local cache."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants as hub
import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
