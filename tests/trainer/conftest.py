"""A whole run on a tiny random pipeline and the built-in world, with two cheap rewards of a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded import embedded
from proofs import random_image
from running import run_training
from tiny import save_flux_kontext

from customized_grpo.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy

REWARDS = '''
def redness(images, pairs):
    """Red over the other colours: smooth, and easy to raise."""
    return 100 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def upper_light(images, pairs):
    half = images.shape[2] // 2
    return 100 * (images[:, :, :half].mean((1, 2, 3)) - images[:, :, half:].mean((1, 2, 3)))
'''


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux_kontext(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def rewards_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "colours.py"
    path.write_text(REWARDS, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_config(pipeline_folder: Path, rewards_file: Path) -> Callable[..., Config]:
    """A small configuration; keywords replace sections, or keys of its rollout and train sections."""

    def make(**changes: object) -> Config:
        sections = {name: changes.pop(name) for name in Config.model_fields if name in changes}
        rollout: dict[str, object] = {"sampler": "dance", "eta": 0.7, "shift": 1.0, "steps": 4}
        rollout |= {"group_size": 3, "pairs": 3, "batch_size": 6}
        train: dict[str, object] = {"iterations": 4, "updates": 2, "ratio": "plain", "learning_rate": 1e-3}
        train |= {"checkpoint_every": 2, "batch_size": 4}
        for name, value in changes.items():
            (rollout if name in RolloutConfig.model_fields and name != "batch_size" else train)[name] = value
        size = {"height": 16, "width": 16, "reference_sizes": [(16, 16)]}
        held_out = embedded(DataConfig, split="held-out", size=4, seed=1)
        defaults: dict[str, object] = {
            "policy": embedded(PolicyConfig, path=str(pipeline_folder), lora=LoraConfig(rank=4), device="cpu", **size),
            "data": embedded(DataConfig, size=7),
            "rewards": [
                RewardConfig(kind=f"{rewards_file}:redness", name="redness", role="identity"),
                RewardConfig(kind=f"{rewards_file}:upper_light", name="light", role="prompt"),
            ],
            "rollout": embedded(RolloutConfig, **rollout),
            "train": embedded(TrainConfig, **train),
            "evaluation": embedded(EvaluationConfig, data=held_out, steps=3, monitors=[]),
        }
        return embedded(Config, **defaults | sections)

    return make


@pytest.fixture(scope="session")
def full(make_config: Callable[..., Config]) -> Config:
    """All weights are trained, with a KL term, in two iterations of one group."""
    config = make_config(iterations=2, checkpoint_every=1, kl_weight=0.1, layout="spread", pairs=1, updates=2)
    return config.model_copy(update={"policy": config.policy.model_copy(update={"lora": None})})


@pytest.fixture(scope="session")
def photos_config(
    make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """A function like `make_config`, on photos of three aspect ratios, for each of which there is a size."""
    folder = tmp_path_factory.mktemp("photos")
    lines = []
    for number, (height, width) in enumerate([(24, 24), (32, 50), (50, 30), (20, 20), (60, 40), (32, 47)]):
        random_image(height, width, number).save(folder / f"{number}.png")
        lines.append({"prompt": f"a red bird {number}", "reference": f"{number}.png"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    def make(**changes: object) -> Config:
        config, sizes = make_config(**changes), [(16, 16), (16, 24), (24, 16)]
        policy = config.policy.model_copy(update={"sizes": sizes, "reference_sizes": sizes})
        data = DataConfig(path=str(folder / "pairs.jsonl"))
        evaluation = config.evaluation.model_copy(update={"data": data})
        return config.model_copy(update={"policy": policy, "data": data, "evaluation": evaluation})

    return make


@pytest.fixture(scope="module")
def policy(make_config: Callable[..., Config]) -> Policy:
    return build_policy(make_config().policy)


@pytest.fixture(scope="session")
def whole(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four iterations of the small configuration that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run_training(make_config(), folder)
    return folder
