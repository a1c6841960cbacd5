"""Training that starts from a LoRA of another training: `policy.adapter`, for every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from proofs import FILE, LORA, PROMPT, apart, half_way, random_image, refused, tune
from safetensors.torch import load_file, save_file
from tiny_models import Model, each_model

from customized_grpo.config import LoraConfig
from customized_grpo.policies.adapters import lora_metadata
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.reporting.formats import convert

KINDS = ("flux-kontext", "flux2-klein", "qwen-image-edit", "longcat-image-edit", "joyimage-edit-plus")


@each_model(*KINDS, of=())
def test_a_lora_is_fused_or_is_the_start(device: str, model: Model, tmp_path: Path) -> None:
    trained = model.policy(lora=LORA)
    conditions = model.encode(trained)
    before = half_way(trained, conditions)
    tune(trained)
    expected = half_way(trained, conditions)
    assert apart(expected, before) > 1e-2
    trained.save(tmp_path / "run" / "lora")
    for changes in ({}, {"adapter_as": "start", "lora": LoraConfig(rank=6, alpha=3)}):
        policy = model.policy(**{"adapter": str(tmp_path / "run"), **changes})
        assert apart(half_way(policy, conditions), expected) < 1e-4
        tune(policy)
        assert apart(half_way(policy, conditions), expected) > 1e-3
        with policy.reference():
            assert apart(half_way(policy, conditions), expected) < 1e-4, "the untuned model has the LoRA"


def test_a_lora_that_does_not_fit_is_one_line(folder: Path, tmp_path: Path) -> None:
    from proofs import built

    def build(**settings: Any) -> PipelinePolicy:
        return built(PipelinePolicy, folder, **settings)  # type: ignore[type-abstract]

    refused(lambda: build(adapter=str(tmp_path)), "policy.adapter", "no such file; give a LoRA's .safetensors file")
    policy = build()
    policy.save(tmp_path)
    start = {"adapter": str(tmp_path), "adapter_as": "start"}
    refused(lambda: build(**start, lora=LoraConfig(rank=2)), "policy.lora.rank: 2", "set it to 4")
    refused(lambda: build(**start, lora=LoraConfig(rank=4, targets=["to_q"])), "policy.lora.targets", "add it")
    weights = load_file(tmp_path / FILE)
    for changed, words in (
        ({name: weight for name, weight in weights.items() if "lora_A" in name}, "lacks"),
        ({name: torch.cat([weight, weight], 1) for name, weight in weights.items()}, "belongs to another model"),
        ({name: weight * torch.nan for name, weight in weights.items()}, "not finite"),
        ({"a": torch.ones(1)}, "LoRA"),
    ):
        save_file(changed, tmp_path / "odd.safetensors")
        refused(lambda: build(adapter=str(tmp_path / "odd.safetensors")), "policy.adapter", words)


@each_model("flux2-klein", of=())
def test_other_loaders_formats_are_read(device: str, model: Model, tmp_path: Path) -> None:
    trained = model.policy(lora=LORA)
    tune(trained)
    trained.save(tmp_path)
    alpha = lora_metadata(tmp_path / FILE)["transformer.lora_alpha"]
    save_file(convert(load_file(tmp_path / FILE), alpha, "flux2", "kohya"), tmp_path / "kohya.safetensors")
    conditions = trained.encode(PROMPT, [random_image(64, 64, 0)])
    policy = model.policy(adapter=str(tmp_path / "kohya.safetensors"))
    assert apart(half_way(policy, conditions), half_way(trained, conditions)) < 1e-4
