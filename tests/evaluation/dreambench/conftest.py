"""A small benchmark of DreamBench's form, a tiny random pipeline and tiny random rewards to put to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_rewards
import torch
import yaml
from embedded import embedded, save_random_run
from PIL import Image
from tiny import save_flux_kontext

from customized_grpo.config import Config, LoraConfig, PolicyConfig
from customized_grpo.config.loading import save_config

LIST = """Classes

subject_name,class
rex,dog
plush,stuffed animal
brolly,umbrella

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} on the beach'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]
"""
COLOURS = """
def redness(images, pairs):
    return 100 * images[:, 0].mean((1, 2))
"""


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux_kontext(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def dreambench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects, of two, three and two photos of noise. Not to be changed."""
    folder = tmp_path_factory.mktemp("dreambench")
    (folder / "prompts_and_classes.txt").write_text(LIST, encoding="utf-8")
    rng = np.random.default_rng(0)
    for subject, count in (("rex", 2), ("plush", 3), ("brolly", 2)):
        (folder / subject).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (20 + 4 * i, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / subject / f"{i:02}.png")
    return folder


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return tiny_rewards.dinov2(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def protocol(tmp_path_factory: pytest.TempPathFactory, dino: Path) -> Path:
    """Identity by a tiny DINO, prompt by a function of a file, the guard; two images, two steps."""
    folder = tmp_path_factory.mktemp("protocol")
    (folder / "colours.py").write_text(COLOURS, encoding="utf-8")
    metrics = [
        {"name": "DINO-I", "kind": "dino", "role": "identity", "path": str(dino), "options": {"segmented": False}},
        {"name": "redness", "kind": f"{folder / 'colours.py'}:redness", "role": "prompt"},
        {"name": "copy-paste", "kind": "copy-paste", "role": "guard"},
    ]
    axes = {"identity_axis": ["DINO-I"], "prompt_axis": ["redness"]}
    text = yaml.safe_dump({"title": "tiny", "images": 2, "steps": 2, "metrics": metrics, "diversity": "DINO-I", **axes})
    (folder / "protocol.yaml").write_text(text, encoding="utf-8")
    return folder / "protocol.yaml"


@pytest.fixture(scope="session")
def config(pipeline: Path) -> Config:
    policy = embedded(PolicyConfig,
        path=str(pipeline), device="cpu", height=16, width=16, reference_sizes=[(16, 16)], max_sequence_length=32,
        lora=LoraConfig(rank=3, alpha=6),
    )  # fmt: skip
    return embedded(Config, policy=policy)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "base.yaml"
    save_config(config, path)
    return path


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    """A finished run with a random LoRA. Not to be changed."""
    return save_random_run(tmp_path_factory.mktemp("runs") / "tuned", config, 0.1)
