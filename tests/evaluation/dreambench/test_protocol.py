"""Protocols: those that are shipped, and what is refused."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import yaml

from customized_grpo.config import ConfigError
from customized_grpo.evaluation.dreambench.folder import check_template
from customized_grpo.evaluation.dreambench.protocol import PROTOCOLS, EvaluationProtocol, Metric, load_protocol
from customized_grpo.rewards import KINDS, build_reward, default_path


@pytest.mark.parametrize("name", PROTOCOLS)
def test_shipped_protocols_name_kinds_and_options_that_there_are(name: str) -> None:
    protocol = load_protocol(name)
    assert {metric.kind for metric in protocol.metrics} <= set(KINDS)
    assert protocol.axes([metric.name for metric in protocol.metrics]) is not None


def test_the_published_one_is_dreambooths() -> None:
    protocol = load_protocol("published")
    metrics = {metric.name: metric for metric in protocol.metrics}
    assert protocol.images == 4
    assert (metrics["DINO-I"].path, metrics["DINO-I"].options["resize"]) == ("facebook/dino-vits16", 256)
    assert {metrics[name].path for name in ("CLIP-I", "CLIP-T")} == {"openai/clip-vit-base-patch32"}
    assert protocol.axes(["DINO-I", "CLIP-T"]) == ("DINO-I", "CLIP-T")
    assert protocol.axes([*metrics]) == ("DINO-I (subject)", "HPS v3")
    assert protocol.axes(["DINO-I"]) is None


def test_the_embedded_one_can_be_built() -> None:
    protocol = load_protocol("embedded", images=1, seed=3)
    assert (protocol.images, protocol.seed, protocol.steps) == (1, 3, 10)
    assert [build_reward(metric.reward(), "cpu").name for metric in protocol.metrics] == [
        "DINO-I", "DINO-I (subject)", "CLIP-I", "CLIP-T", "copy-paste",
    ]  # fmt: skip


def test_what_is_left_out_and_why(dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = Metric(name="a", kind="dino", role="identity", only_if="masks")
    assert masks.why_not(True) is None and "no masks" in str(masks.why_not(False))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    hps = Metric(name="b", kind="hps-v3", role="prompt", only_if="at-hand")
    assert default_path("hps-v3") == "MizzenAI/HPSv3"
    assert "not on this machine" in str(hps.why_not(True))
    here = Metric(name="c", kind="dino", role="identity", path=str(dino), only_if="at-hand")
    assert here.why_not(False) is None
    assert Metric(name="d", kind="hps-v3", role="prompt").why_not(False) is None, "asked for without condition"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metrics": []}, "metrics"),
        ({"images": 0}, "images"),
        ({"colour": 1}, "colour"),
        ({"diversity": "redness"}, "diversity: 'redness' is no metric of identity"),
        ({"prompt_axis": ["CLIP-T"]}, "prompt_axis: no metric is named 'CLIP-T'"),
    ],
)
def test_protocols_that_are_none(protocol: Path, tmp_path: Path, change: dict[str, object], told: str) -> None:
    values = yaml.safe_load(protocol.read_text(encoding="utf-8"))
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**values, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=told) as caught:
        load_protocol(str(path))
    assert "\n" not in str(caught.value)


def test_two_metrics_of_one_name(protocol: Path) -> None:
    values = yaml.safe_load(protocol.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="two have one name"):
        EvaluationProtocol.model_validate({**values, "metrics": values["metrics"] * 2})


def test_no_such_protocol() -> None:
    with pytest.raises(ConfigError, match="--protocol nowhere"):
        load_protocol("nowhere")


@pytest.mark.parametrize(
    "template",
    ["{subject}_{prompt}.png", "{subject.name}/{prompt}_{index}.png", "{subject}/{prompt!r}_{index}.png",
     "{subject:9}/{prompt}_{index}.png", "{subject}/{prompt:x}_{index}.png", "{seed}.png", "{subject"],
)  # fmt: skip
def test_templates_that_cannot_name_pictures(template: str) -> None:
    with pytest.raises(ConfigError, match="--pictures-as"):
        check_template(template, images=2)


def test_templates_that_can() -> None:
    check_template("{subject}/{prompt:02}/{index:04}.jpg", images=2)
    check_template("{prompt}-{subject}.png", images=1)
