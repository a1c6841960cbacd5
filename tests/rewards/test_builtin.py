"""The built-in rewards from Python: short names, imported late, with what a config needs to build them again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from customized_grpo import rewards
from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.utils.hub import ModelError


def test_every_kind_has_one_public_class() -> None:
    public = {getattr(getattr(rewards, name), "kind", None) for name in rewards.__all__}
    assert set(rewards.KINDS) <= public and set(rewards.__all__) <= set(dir(rewards))
    with pytest.raises(AttributeError, match="has no attribute 'Dinos'"):
        rewards.Dinos  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.slow
def test_the_package_imports_no_model_library() -> None:
    code = "import sys; from customized_grpo import rewards; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_one_line_builds_one_and_a_config_builds_it_again(
    dino_folder: Path, clip_folder: Path, make_pair: Callable[..., Pair]
) -> None:
    images, pairs = torch.rand(2, 3, 48, 40), [make_pair("a"), make_pair("b", 1)]
    built = [
        rewards.Dino(dino_folder),
        rewards.DinoPatches(str(dino_folder), name="patches", device="cpu", batch_size=1, segmented=False),
        rewards.Clip(clip_folder, device=torch.device("cpu")),
        rewards.CopyPaste(cache_size=3),
    ]
    assert [reward.name for reward in built] == ["dino", "patches", "clip", "copy-paste"]
    assert rewards.describe(built[0]) == {
        "kind": "dino", "name": "dino", "path": str(dino_folder), "device": None, "options": {}
    }  # fmt: skip
    assert rewards.describe(built[1]) == {
        "kind": "dino-patches", "name": "patches", "path": str(dino_folder), "device": "cpu",
        "options": {"batch_size": 1, "segmented": False},
    }  # fmt: skip
    for reward in built:
        described = rewards.describe(reward)
        again = rewards.build_reward(RewardConfig(role="identity", **described), "cpu")
        assert torch.equal(again(images, pairs), reward(images, pairs))
        assert rewards.describe(again) == described


def test_wrong_arguments_are_reported(dino_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^reward 'dino': device: 'gpu' is no device; give cpu"):
        rewards.Dino(dino_folder, device="gpu")
    with pytest.raises(TypeError, match="unexpected keyword argument 'segmentd'"):
        rewards.Dino(dino_folder, segmentd=True)  # type: ignore[call-arg]


def test_a_vlm_has_the_role_that_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("customized_grpo.rewards.endpoint.Endpoint.get", lambda *_: None)
    vlm = rewards.Vlm("some-model", role="identity", url="http://localhost:1/v1", request={"api_key": "x"})
    described = rewards.describe(vlm)
    assert described["options"] == {"url": "http://localhost:1/v1", "request": {"api_key": "<secret>"}}
    assert rewards.RewardTerm(vlm, "identity").name == "vlm"
    with pytest.raises(rewards.RewardError, match="made for the role identity, not prompt"):
        rewards.RewardTerm(vlm, "prompt")
