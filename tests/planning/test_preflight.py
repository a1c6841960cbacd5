"""Checks before a run's models are loaded, against a server that answers as the Hub does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub.constants as hub
import pytest
import tiny
import tiny_qwen
from embedded import embedded
from servers import Scripted, reply
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.config import Config, DataConfig, PolicyConfig, RewardConfig
from customized_grpo.planning import check_models
from customized_grpo.policies import build_policy
from customized_grpo.utils.hub import ModelError

WEIGHTS, TOO_LARGE = 1000, 10**16
REWARD = [
    RewardConfig(kind="dino", role="identity", path="facebook/dinov2-base"),
    RewardConfig(kind="clip", role="prompt", path="embedded/reward-prompt"),
]


class Hub:
    """Repositories by id, "public" or "gated"; the files of each with their sizes; and the paths of requests."""

    def __init__(self) -> None:
        self.access: dict[str, str] = {}
        self.files = {"transformer/model.safetensors": WEIGHTS, "model.safetensors": WEIGHTS, "flux1.safetensors": 7}
        self.paths: list[str] = []

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlparse(handler.path).path
        self.paths.append(path)
        repository = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        access = self.access.get(repository)
        if access is None:
            reply(handler, 404, "", **{"X-Error-Code": "RepoNotFound"})
        elif path.endswith("/revision/gone"):
            reply(handler, 404, "", **{"X-Error-Code": "RevisionNotFound"})
        elif path.endswith("/auth-check"):
            reply(handler, 403 if access == "gated" else 200, "{}", **{"X-Error-Code": "GatedRepo"})
        else:
            files = [{"rfilename": file, "size": size} for file, size in self.files.items()]
            gated = "auto" if access == "gated" else False
            reply(handler, 200, json.dumps({"id": repository, "gated": gated, "siblings": files}))


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    known = Hub()
    with Scripted(lambda handler, number, body: reply(handler, 404, ""), known.get) as server:
        monkeypatch.setattr(hub, "ENDPOINT", server.url)
        yield known


def config_of(path: str = "embedded/pipeline", rewards: list[RewardConfig] | None = None, **changes: Any) -> Config:
    policy = embedded(PolicyConfig, path=path, **changes)
    given = {} if rewards is None else {"rewards": rewards}
    return embedded(Config, policy=policy, data=DataConfig(path="pairs.jsonl"), **given)


def refused(config: Config, *parts: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_models(config)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts), caught.value


def cached_model() -> Path:
    """The folder of someone/model in the local cache, made empty."""
    repository = Path(hub.HF_HUB_CACHE) / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_licence_that_is_not_accepted_is_named_with_the_page(answering: Hub) -> None:
    answering.access["black-forest-labs/FLUX.1-Kontext-dev"] = "gated"
    refused(
        config_of("black-forest-labs/FLUX.1-Kontext-dev"),
        "policy.path: black-forest-labs/FLUX.1-Kontext-dev is gated",
        f"{hub.ENDPOINT}/black-forest-labs/FLUX.1-Kontext-dev",
        "`hf auth login`",
    )
    answering.access = {"facebook/dinov3": "gated"}
    refused(
        config_of(rewards=[REWARD[0].model_copy(update={"path": "facebook/dinov3"}), REWARD[1]]), "reward 'dino': path"
    )


def test_models_that_are_not_on_the_hub_are_named(answering: Hub) -> None:
    refused(config_of("someone/typo"), "policy.path: the Hub has no model someone/typo", "correct the id")
    answering.access["someone/model"] = "public"
    refused(config_of("someone/model", revision="gone"), "policy.path: someone/model has no revision 'gone'")


def test_the_default_segmenter_is_checked_too(answering: Hub) -> None:
    answering.access = {"facebook/dinov2-base": "public", "facebook/sam2.1-hiera-small": "public"}
    refused(config_of(rewards=REWARD), "reward 'dino': detector", "IDEA-Research/grounding-dino-tiny")
    whole = REWARD[0].model_copy(update={"options": {"segmenter": None}})
    check_models(config_of(rewards=[whole, REWARD[1]]))
    check_models(config_of(rewards=REWARD).model_copy(update={"data": DataConfig(path="world")}))


def test_a_full_disk_is_reported_before_the_download(answering: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    answering.access["someone/model"] = "public"
    check_models(config_of("someone/model"))
    answering.files["flux1.safetensors"] = TOO_LARGE  # a file that diffusers does not load
    check_models(config_of("someone/model"))
    answering.files["transformer/model.safetensors"] = TOO_LARGE
    refused(config_of("someone/model"), "GB are free", "need 10000000.0 GB more (someone/model", "set HF_HOME")
    transformer = cached_model() / "transformer"
    transformer.mkdir()
    (transformer / "model.safetensors").write_bytes(b"")
    check_models(config_of("someone/model"))


def test_without_a_connection_a_cached_model_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(config_of("someone/model"), "someone/model is not in the local cache, and the Hub cannot be reached")
    (cached_model() / "model_index.json").write_text("{}")
    check_models(config_of("someone/model"))


def test_embedded_and_local_models_need_no_hub(answering: Hub, tmp_path: Path) -> None:
    check_models(config_of())
    check_models(config_of(str(tmp_path)))
    assert answering.paths == []


def test_the_command_checks_before_it_makes_anything(answering: Hub, tmp_path: Path) -> None:
    answering.access["someone/model"] = "gated"
    arguments = ["--config", "embedded", "--set", "policy.path=someone/model", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 2 and "policy.path: someone/model is gated" in done.stderr, done.output
    assert not (tmp_path / "run").exists()


def test_a_processor_without_its_package_is_reported_before_weights_load(tmp_path: Path) -> None:
    with tiny_qwen.without_video():
        tiny.save(tiny_qwen.qwen_image_edit(), tmp_path)
    # The published folder has this file, which torchvision reads.
    settings = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (tmp_path / "processor" / "video_preprocessor_config.json").write_text(json.dumps(settings))
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    next((tmp_path / "text_encoder").glob("*.safetensors")).unlink()  # would be an error of its own, later
    with pytest.raises(ModelError, match=r"Qwen2VLProcessor of .*needs a package .*; pip install torchvision$"):
        build_policy(embedded(PolicyConfig, kind="qwen-image-edit", path=str(tmp_path)))
