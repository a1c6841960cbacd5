"""Every recipe trains an iteration on a tiny pipeline of its classes, with only paths and sizes replaced.

Some are evaluated too, before and after: one with UNO's LoRA, and one in four steps with images of several sizes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_rewards
import torch
from tiny_models import models, small_qwen  # noqa: F401

from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.planning.remedies import changed
from customized_grpo.trainer.folder import LORA
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.outlines import config_reader

FOLDER = Path(__file__).parents[2] / "recipes"
#: Each recipe, and one with each objective's layer.
RECIPES = [(path,) for path in sorted(FOLDER.glob("*.yaml"))]
RECIPES += [(FOLDER / "kontext-dev.yaml", path) for path in sorted(FOLDER.glob("objectives/*.yaml"))]
#: Long ones that are of the same policy, or as guided, as a shorter one.
LONG = ("flux2-klein", "flux2-dev", "joyimage-edit-plus")
GROUP = 2
EVALUATED = ("paper", "flux2-klein-distilled")
#: Tiny models by the kind of reward.
REWARDS = {"dino": tiny_rewards.dinov3, "clip": tiny_rewards.clip}


def index_of(path: str) -> dict[str, Any]:
    return config_reader(path)("model_index.json")


def is_like(folder: str, path: str) -> bool:
    """Return whether both hold a pipeline of one class with parts of the same classes, distilled or not."""

    def classes(index: dict[str, Any]) -> dict[str, Any]:
        # A tokenizer stands for the processor of FLUX.2-dev, which needs torchvision.
        kept = ("transformer", "vae", "text_encoder", "text_encoder_2", "_class_name", "is_distilled")
        return {name: part[1] if isinstance(part, list) else part for name, part in index.items() if name in kept}

    return classes(index_of(folder)) == classes(index_of(path))


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of a tiny model for a kind of reward, made once."""
    torch.manual_seed(0)
    return cache(lambda kind: str(REWARDS[kind](tmp_path_factory.mktemp(kind))))


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_qwen():
        yield


def tiny_config(recipe: tuple[Path, ...], models: Callable[[str], Any], reward: Callable[[str], str]) -> Config:  # noqa: F811
    """Return the recipe with paths of tiny models, and with small sizes and numbers of images."""
    config = load_config(recipe)
    if recipe[0].stem == "embedded":
        model = config.policy.path, {}
    else:
        sources = {**tiny_models.SOURCES, **tiny_models.BASES}
        kinds = {name: source.settings.get("kind", "flux-kontext") for name, source in sources.items()}
        alike = [name for name, kind in kinds.items() if kind == config.policy.kind]
        found = next((name for name in alike if is_like(str(models(name).folder), config.policy.path)), None)
        assert found is not None, (
            f"tests/policies/tiny_models.py has no pipeline of the classes of {config.policy.path}"
        )
        tiny, settings = models(found), models(found).source.settings
        side = {"height": tiny_models.HEIGHT, "width": tiny_models.WIDTH, "reference_sizes": [(32, 32)]}
        if config.policy.sizes is not None:
            side["sizes"] = [(tiny_models.HEIGHT, tiny_models.WIDTH), (tiny_models.WIDTH, tiny_models.HEIGHT)]
        length = settings.get("max_sequence_length", 24)
        model = str(tiny.folder), {**side, "max_sequence_length": length, **tiny.further}
    path, sizes = model
    changes: dict[str, Any] = {"policy.path": path, "policy.device": "cpu"}
    changes |= {f"policy.{name}": value for name, value in sizes.items()}
    if config.policy.lora is not None:
        changes["policy.lora.rank"] = 4
    if importlib.util.find_spec("torchao") is None:  # an optional package
        changes |= {"policy.quantise": None, "policy.quantise_text_encoders": None}
    lists = {"rewards": config.rewards, "evaluation.monitors": config.evaluation.monitors}
    for place, rewards in lists.items():
        for i, one in enumerate(rewards):
            if one.kind in REWARDS and not str(one.path).startswith("embedded/"):
                changes[f"{place}.{i}.path"] = reward(one.kind)
    changes |= {"data.path": "world", "data.size": 2, "evaluation.data.path": "world", "evaluation.data.size": 2}
    changes |= {"rollout.pairs": 1, "rollout.group_size": GROUP, "rollout.batch_size": GROUP, "train.batch_size": 64}
    changes |= {"train.iterations": 1}
    return changed(config, changes)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(one, marks=[pytest.mark.slow] if one[0].stem in LONG else []) for one in RECIPES],
    ids=lambda paths: "-".join(path.stem for path in paths),
)
def test_a_recipe_trains(
    recipe: tuple[Path, ...],
    models: Callable[[str], Any],  # noqa: F811
    reward: Callable[[str], str],
    tmp_path: Path,
) -> None:
    config = tiny_config(recipe, models, reward)
    held_out = open_dataset(config.evaluation.data) if recipe[0].stem in EVALUATED else None
    CustomizedGRPOTrainer(args=config, eval_dataset=held_out, output_dir=tmp_path / "run").train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert len(trained) == 1 and all(line["gradient_norm"] > 0 for line in trained), lines
    assert any((tmp_path / "run" / LORA).glob("*.safetensors"))
    names = {reward.name or reward.kind for reward in (*config.rewards, *config.evaluation.monitors)}
    for when in () if held_out is None else ("base", "tuned"):
        found = json.loads((tmp_path / "run" / "evaluation" / when / "scores.json").read_text())
        assert found["scores"].keys() == names and all(len(scores) == 2 for scores in found["scores"].values())
