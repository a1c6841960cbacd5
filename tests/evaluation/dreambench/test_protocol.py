"""Protocols: those that are shipped, and what is refused."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import yaml

from customized_grpo.config import ConfigError
from customized_grpo.evaluation.dreambench.protocol import PROTOCOLS, EvaluationProtocol, Metric, load_protocol
from customized_grpo.rewards import KINDS


@pytest.mark.parametrize("name", PROTOCOLS)
def test_shipped_protocols_name_kinds_and_options_that_there_are(name: str) -> None:
    protocol = load_protocol(name)
    assert {metric.kind for metric in protocol.metrics} <= set(KINDS)
    assert protocol.axes([metric.name for metric in protocol.metrics]) is not None


def test_metrics_are_skipped_with_the_reason(dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    metrics = [
        Metric(name="masked", kind="dino", role="identity", only_if="masks"),
        Metric(name="absent", kind="hps-v3", role="prompt", only_if="at-hand"),
        Metric(name="here", kind="dino", role="identity", path=str(dino), only_if="at-hand"),
        Metric(name="asked", kind="hps-v3", role="prompt"),
    ]
    protocol = EvaluationProtocol(title="own", metrics=metrics, diversity="masked")
    measured, skipped = protocol.measured(masked=True)
    assert list(measured) == ["masked", "here", "asked", "diversity (masked)"] and list(skipped) == ["absent"]
    measured, skipped = protocol.measured(masked=False)
    assert list(measured) == ["here", "asked"]
    assert "no masks" in skipped["masked"] and "not on this machine" in skipped["absent"]
    assert skipped["diversity (masked)"] == "masked is skipped"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": 1}, "colour"),
        ({"diversity": "redness"}, "diversity: 'redness' is no metric of identity"),
        ({"prompt_axis": ["CLIP-T"]}, "prompt_axis: no metric is named 'CLIP-T'"),
        ({"metrics": [{"name": "a", "kind": kind, "role": "identity"} for kind in "xy"]}, "two have one name"),
    ],
)
def test_protocols_that_are_none(protocol: Path, tmp_path: Path, change: dict[str, object], text: str) -> None:
    values = yaml.safe_load(protocol.read_text(encoding="utf-8"))
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**values, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=text) as caught:
        load_protocol(str(path))
    assert "\n" not in str(caught.value)
