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
MODELS = ("kontext-dev", "paper", "qwen-image-edit", "flux2-klein", "flux2-dev")


#: FLUX.2-dev has 16.6 GB in 4 bits.
LARGE = RECIPES / "hardware" / "24gb-32b.yaml"


def config_of(model: str, hardware: str, *sizes: str) -> Config:
    over = [RECIPES / "sizes" / f"{size}.yaml" for size in sizes]
    large = [LARGE] if (model, hardware) == ("flux2-dev", "24gb") else []
    return load_config([RECIPES / f"{model}.yaml", RECIPES / "hardware" / f"{hardware}.yaml", *over, *large])


def test_these_are_all_recipes() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*MODELS, "embedded"}
    assert {path.stem for path in (RECIPES / "hardware").iterdir()} == {*HARDWARE, LARGE.stem}


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("model", MODELS)
def test_recipes_fit_their_hardware_at_both_sizes(model: str, hardware: str) -> None:
    memory, processes = HARDWARE[hardware]
    for sizes in ((), ("1024",)):
        config = config_of(model, hardware, *sizes)
        side, policy = 1024 if sizes else 512, config.policy
        seen = 512 if (model, hardware) == ("flux2-dev", "24gb") else side
        assert (policy.height, policy.width, policy.reference_sizes) == (side, side, [(seen, seen)])
        plan = make_plan(config, processes=processes)
        assert plan.needed <= memory, plan.device[plan.peak_phase]


def test_the_papers_adapter_is_fused_on_24_gb_too() -> None:
    policy = config_of("paper", "24gb").policy
    assert policy.adapter is not None and policy.adapter_as == "fused" and policy.quantise == "nf4"


def test_what_a_large_model_leaves_out_of_a_small_device_is_where_its_judges_work_and_half_its_rank() -> None:
    plain, laid = (
        load_config([RECIPES / "flux2-dev.yaml", RECIPES / "hardware" / "24gb.yaml"]),
        config_of("flux2-dev", "24gb"),
    )
    assert [reward.model_copy(update={"device": None}) for reward in laid.rewards] == plain.rewards
    assert {reward.device for reward in laid.rewards} == {"cpu"}
    assert plain.policy.lora is not None and laid.policy.lora is not None
    assert laid.policy.lora.rank == plain.policy.lora.rank // 2


@pytest.mark.parametrize("hardware", HARDWARE)
def test_hardware_changes_no_more_than_it_says(hardware: str) -> None:
    plain, laid = load_config(RECIPES / "kontext-dev.yaml"), config_of("kontext-dev", hardware)
    assert laid.method == plain.method and laid.rewards == plain.rewards and laid.policy.path == plain.policy.path
    assert laid.policy.offload and laid.policy.conditions is not None
    settings = yaml.safe_load((RECIPES / "accelerate" / "8gpu.yaml").read_text(encoding="utf-8"))
    assert settings["num_processes"] == load_config(RECIPES / "hardware" / "8gpu.yaml").rollout.pairs


def test_of_several_files_the_later_wins_and_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {iterations: 7, batch_size: 3}\npolicy: {reference_sizes: [[16, 16], [24, 24]]}\n")
    second.write_text("train: {batch_size: 5}\npolicy: {reference_sizes: [[32, 32]]}\n")
    config = load_config([first, second], ["train.updates=9"])
    assert (config.train.iterations, config.train.batch_size, config.train.updates) == (7, 5, 9)
    assert config.policy.reference_sizes == [(32, 32)]
    second.write_text("train: {batch_size: 0}\n")
    with pytest.raises(ValueError, match=r"second\.yaml:1: train\.batch_size"):
        load_config([first, second])
