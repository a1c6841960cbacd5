"""The configurations and code of docs/rewards.md work."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from customized_grpo import rewards
from customized_grpo.config import Config, RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import KINDS, build_reward

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def write_files(folder: Path) -> None:
    """The Python files of the document, each by the name in its first line."""
    for source in (block for block in blocks("python") if block.startswith('"""')):
        (folder / source.split('"""')[1]).write_text(source, encoding="utf-8")


@pytest.mark.parametrize("block", blocks("yaml"))
def test_configurations_are_valid(block: str) -> None:
    read: dict[str, Any] = yaml.safe_load(block)
    config = Config.model_validate({"evaluation": {"monitors": []}, **read})
    for reward in [*config.rewards, *config.evaluation.monitors]:
        if reward.kind in KINDS:
            built_in = getattr(rewards, KINDS[reward.kind].partition(":")[2])
            assert set(reward.options) <= set(inspect.signature(built_in).parameters), reward.kind


def test_the_example_of_your_own_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pair: Callable[..., Pair]
) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    colourful, calm, _ = yaml.safe_load(blocks("yaml")[-1])["rewards"]
    red = torch.zeros(3, 8, 8)
    red[0] = 0.25
    images = torch.stack([red, torch.rand(3, 8, 8)])
    pairs = [make_pair("a")] * 2
    scores = build_reward(RewardConfig(**colourful), "cpu")(images, pairs)
    assert float(scores[0]) == pytest.approx(50)
    scores = build_reward(RewardConfig(**calm), "cpu")(images, pairs)
    assert float(scores[0]) == 0 and float(scores[1]) < -1


CODE = '''
import torch
from transformers import PreTrainedConfig, PreTrainedModel

class TinyConfig(PreTrainedConfig):
    model_type = "tiny-birefnet"

class BiRefNet(PreTrainedModel):
    """Red against blue; in training, and so before its last output, something else."""
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.post_init()

    def forward(self, x):
        assert not self.training and x.shape[1:] == (3, 1024, 1024)
        return [torch.zeros_like(x[:, :1]), (x * self.weight.view(3, 1, 1)).sum(1, keepdim=True)]
'''


def test_the_example_of_birefnet_works_on_a_model_with_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dino_folder: Path
) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "tiny"
    model.mkdir()
    (model / "birefnet.py").write_text(CODE, encoding="utf-8")
    names = {"AutoConfig": "birefnet.TinyConfig", "AutoModelForImageSegmentation": "birefnet.BiRefNet"}
    (model / "config.json").write_text(
        json.dumps({"model_type": "tiny-birefnet", "architectures": ["BiRefNet"], "auto_map": names})
    )
    save_file({"weight": torch.tensor([9.0, 0.0, -9.0])}, model / "model.safetensors", {"format": "pt"})
    cut = (tmp_path / "cut.py").read_text(encoding="utf-8").replace("ZhengPeng7/BiRefNet", str(model))
    (tmp_path / "cut.py").write_text(cut, encoding="utf-8")
    options = {"segmenter": "cut.py:BiRefNet"}
    reward: Any = build_reward(
        RewardConfig(kind="dino", role="identity", path=str(dino_folder), options=options), "cpu"
    )
    photo = Image.new("RGB", (60, 40), "blue")
    photo.paste("red", (20, 10, 40, 30))
    mask = reward.segmenter.reference(photo, "ball")
    truth = torch.zeros(1, 40, 60)
    truth[:, 10:30, 20:40] = 1
    assert (mask - truth).abs().mean() < 0.02
