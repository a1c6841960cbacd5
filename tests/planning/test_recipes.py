"""Each recipe fits into the memory that it is meant for, by its own plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.planning import make_plan

RECIPES = Path(__file__).parents[2] / "recipes"
HARDWARE = {"80gb": (80e9, 1), "24gb": (24e9, 1), "8gpu": (80e9, 8)}
MODELS = sorted({path.stem for path in RECIPES.glob("*.yaml")} - {"embedded"})
#: Additional settings of FLUX.2-dev on 24 GB.
LARGE = RECIPES / "hardware" / "24gb-32b.yaml"


def config_of(model: str, hardware: str, *sizes: str) -> Config:
    over = [RECIPES / "sizes" / f"{size}.yaml" for size in sizes]
    large = [LARGE] if (model, hardware) == ("flux2-dev", "24gb") else []
    return load_config([RECIPES / f"{model}.yaml", RECIPES / "hardware" / f"{hardware}.yaml", *over, *large])


def test_these_are_all_files_of_hardware() -> None:
    assert {path.stem for path in (RECIPES / "hardware").iterdir()} == {*HARDWARE, LARGE.stem}


@pytest.mark.parametrize(
    ("model", "hardware"),
    [
        *((model, "24gb") for model in MODELS),
        ("qwen-image-edit", "80gb"),
        ("flux2-dev", "80gb"),
        ("kontext-dev", "8gpu"),
    ],
)
def test_recipes_fit_their_hardware_at_the_larger_size(model: str, hardware: str) -> None:
    memory, processes = HARDWARE[hardware]
    for side, config in ((512, config_of(model, hardware)), (1024, config_of(model, hardware, "1024"))):
        reference = 512 if (model, hardware) == ("flux2-dev", "24gb") else side
        sizes = (config.policy.height, config.policy.width, config.policy.reference_sizes)
        assert sizes == (side, side, [(reference, reference)])
    plan = make_plan(config, processes=processes)
    assert plan.needed <= memory, plan.device[plan.peak_phase]


@pytest.mark.parametrize("hardware", HARDWARE)
def test_hardware_changes_neither_method_nor_model(hardware: str) -> None:
    plain, laid = load_config(RECIPES / "kontext-dev.yaml"), config_of("kontext-dev", hardware)
    assert laid.method == plain.method and laid.rewards == plain.rewards and laid.policy.path == plain.policy.path
    settings = yaml.safe_load((RECIPES / "accelerate" / "8gpu.yaml").read_text(encoding="utf-8"))
    assert settings["num_processes"] == load_config(RECIPES / "hardware" / "8gpu.yaml").rollout.pairs
