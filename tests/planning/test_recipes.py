"""Each recipe fits into the memory that it is meant for, by its own plan, and follows its model's pipeline."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
)
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from diffusers.pipelines.flux2 import pipeline_flux2_klein as klein

from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.planning import make_plan
from customized_grpo.policies import build_policy
from customized_grpo.trainer.windows import stochastic_steps
from customized_grpo.utils.outlines import config_reader

RECIPES = Path(__file__).parents[2] / "recipes"
HARDWARE = {"80gb": (80e9, 1), "24gb": (24e9, 1), "8gpu": (80e9, 8)}
MODELS = sorted({path.stem for path in RECIPES.glob("*.yaml")} - {"embedded"})
#: Additional settings of FLUX.2-dev on 24 GB.
LARGE = RECIPES / "hardware" / "24gb-32b.yaml"
#: Additional settings of Qwen-Image-Edit on 24 GB, at the larger size.
GUIDED = RECIPES / "hardware" / "24gb-guided.yaml"


def config_of(model: str, hardware: str, *sizes: str) -> Config:
    over = [RECIPES / "sizes" / f"{size}.yaml" for size in sizes]
    guided = [GUIDED] if sizes else []
    further = {
        ("flux2-dev", "24gb"): [LARGE],
        ("qwen-image-edit", "24gb"): guided,
        ("joyimage-edit-plus", "24gb"): guided,
    }
    last = further.get((model, hardware), [])
    return load_config([RECIPES / f"{model}.yaml", RECIPES / "hardware" / f"{hardware}.yaml", *over, *last])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "hardware"),
    [
        *((model, "24gb") for model in MODELS if model != "paper-fast"),
        ("qwen-image-edit", "80gb"),
        ("flux2-dev", "80gb"),
        ("kontext-dev", "8gpu"),
    ],
)
def test_recipes_fit_their_hardware_at_the_larger_size(model: str, hardware: str) -> None:
    memory, processes = HARDWARE[hardware]
    for side in (512, 1024):
        config = config_of(model, hardware, str(side))
        reference = 512 if (model, hardware) == ("flux2-dev", "24gb") else side
        for squares, sizes in ((side, config.policy.sizes), (reference, config.policy.reference_sizes)):
            assert sizes is not None and sizes[0] == (squares, squares) and len(sizes) > 10
            assert all(abs(height * width / squares**2 - 1) < 0.02 for height, width in sizes), "of one area"
            assert all(side % 16 == 0 for size in sizes for side in size), "whole tokens"
            assert {(width, height) for height, width in sizes} == set(sizes)
    plan = make_plan(config, processes=processes)
    assert plan.needed <= memory, plan.device[plan.peak_phase]


@pytest.mark.parametrize("hardware", HARDWARE)
def test_hardware_changes_neither_method_nor_model(hardware: str) -> None:
    plain, laid = load_config(RECIPES / "kontext-dev.yaml"), config_of("kontext-dev", hardware)
    assert laid.method == plain.method and laid.rewards == plain.rewards and laid.policy.path == plain.policy.path
    settings = yaml.safe_load((RECIPES / "accelerate" / "8gpu.yaml").read_text(encoding="utf-8"))
    assert settings["num_processes"] == load_config(RECIPES / "hardware" / "8gpu.yaml").rollout.pairs


def test_kontext_has_its_own_resolutions() -> None:
    policy = load_config(RECIPES / "kontext-dev.yaml").policy
    assert policy.sizes is not None and policy.reference_sizes is None, "references by the pipeline's rule"
    assert sorted((width, height) for height, width in policy.sizes) == sorted(kontext.PREFERRED_KONTEXT_RESOLUTIONS)


@pytest.mark.parametrize(("recipe", "guidance"), [("kontext-dev.yaml", 2.5), ("paper.yaml", 3.5)])
def test_the_papers_recipe_holds_its_published_constants(recipe: str, guidance: float) -> None:
    config = load_config(RECIPES / recipe)
    rollout, train, method = config.rollout, config.train, config.method
    assert (rollout.steps, rollout.shift, rollout.eta, rollout.group_size) == (25, 3.0, 0.4, 12)
    assert (train.learning_rate, train.betas, train.weight_decay) == (2e-5, (0.9, 0.999), 1.1e-4)
    assert (train.clip_range, train.max_gradient_norm, train.trained_fraction) == (1e-4, 1.0, 0.6)
    assert (method.shaping, method.gamma, method.weighting, method.advantage_clip) == ("sars", 0.4, "tdw", 5.0)
    assert config.policy.lora is not None
    assert (config.policy.lora.rank, config.policy.guidance, rollout.window) == (512, guidance, None)


def test_the_papers_lora_has_the_layers_and_rank_of_the_released_script() -> None:
    paper, fast = (load_config(RECIPES / f"{name}.yaml") for name in ("paper", "paper-fast"))
    policy = build_policy(paper.policy.model_copy(update={"device": "meta"}))
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, weight in policy.trainable().items():
        layer, half = name.split(".lora_")
        shapes.setdefault(layer, {})[half[0]] = tuple(weight.shape)
    double = [*(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
              *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))]  # fmt: skip
    single = [*(f"attn.{name}" for name in ("to_q", "to_k", "to_v")), "proj_out"]
    assert shapes.keys() == {
        *(f"transformer_blocks.{i}.{name}" for i in range(19) for name in double),
        *(f"single_transformer_blocks.{i}.{name}" for i in range(38) for name in single),
    }, "and not the transformer's last layer, which is a proj_out too"
    for name, shape in shapes.items():
        assert shape == {"A": (512, 15360 if name.endswith("proj_out") else 3072), "B": (3072, 512)}
    # The script has one down-projection for queries, keys and values, where diffusers' layers have three.
    fused = 2 * 19 + 38
    own = sum(weight.numel() for weight in policy.trainable().values())
    assert own == 1_195_376_640 and own - 2 * fused * 512 * 3072 == 956_301_312
    lora = fast.policy.lora
    assert paper.policy.lora is not None and lora is not None
    assert (lora.rank, lora.targets) == (128, paper.policy.lora.targets)


def test_the_fast_recipe_is_the_papers_work_with_fewer_evaluations() -> None:
    paper, fast = (load_config(RECIPES / f"{name}.yaml") for name in ("paper", "paper-fast"))
    assert (fast.data, fast.rewards, fast.method, fast.evaluation) == (
        paper.data, paper.rewards, paper.method, paper.evaluation,
    )  # fmt: skip
    same = {"steps", "shift", "group_size", "pairs", "shared_noise"}
    assert fast.rollout.model_dump(include=same) == paper.rollout.model_dump(include=same)
    steps = [stochastic_steps(fast.rollout, fast.seed, iteration) for iteration in range(fast.train.iterations)]
    assert {step for window in steps for step in window} == set(range(15)), "the noisy steps, all of them"
    assert len(stochastic_steps(paper.rollout, paper.seed, 0)) == 24


@pytest.mark.parametrize("recipe", ["flux2-klein", "flux2-klein-distilled", "flux2-klein-kv"])
def test_klein_samples_as_its_pipeline_does(recipe: str) -> None:
    """Distilled models at 4 steps without guidance, base models with it; noise levels of the pipeline at that size."""
    config = load_config(RECIPES / f"{recipe}.yaml")
    pipeline = Flux2KleinKVPipeline if recipe == "flux2-klein-kv" else Flux2KleinPipeline
    usual = {name: one.default for name, one in inspect.signature(pipeline.__call__).parameters.items()}
    distilled = recipe != "flux2-klein"
    assert config.policy.true_cfg == (1.0 if distilled else usual["guidance_scale"])
    assert config.rollout.steps == config.evaluation.steps == (4 if distilled else 28)
    assert config.rollout.window is None and config.rollout.shift is None
    index = config_reader(config.policy.path)("model_index.json")
    assert index["_class_name"] == pipeline.__name__ and index.get("is_distilled", True) is distilled

    policy = build_policy(config.policy.model_copy(update={"device": "meta"}))
    steps, tokens = config.rollout.steps, math.prod(policy.latent_shape[:-1])
    levels = policy.sigmas(steps)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=klein.compute_empirical_mu(tokens, steps))
    assert (tokens, torch.equal(levels, scheduler.sigmas)) == (1024, True)
