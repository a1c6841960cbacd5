"""Pipelines in memory, and convolutions with channels last: the same policies and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import pytest
import tiny
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from tiny_models import Model, each_model
from torch import nn

from customized_grpo.config import LoraConfig, PolicyConfig
from customized_grpo.policies import build_policy, pipelines
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.utils.hub import ModelError


@pytest.fixture
def pipeline() -> FluxKontextPipeline:
    return tiny.flux_kontext()


def config(path: str = "nowhere/at-all", **settings: object) -> PolicyConfig:
    sizes = {"height": 32, "width": 32, "reference_sizes": [(32, 32)], "lora": LoraConfig(rank=2), "device": "cpu"}
    return PolicyConfig.model_validate({"path": path, **sizes, **settings})


def test_it_computes_the_same_velocities(folder: Path) -> None:
    loaded = build_policy(config(str(folder)))
    given = build_policy(config(), FluxKontextPipeline.from_pretrained(folder))
    latents, sigma = torch.randn(1, *given.latent_shape), torch.tensor([0.5])
    image = Image.new("RGB", (32, 32), "red")
    found = [policy.velocity(latents, sigma, policy.encode("a red bird", [image])) for policy in (loaded, given)]
    assert torch.equal(*found) and found[0].abs().max() > 0
    assert loaded.trainable().keys() == given.trainable().keys()


def test_it_is_frozen_and_of_the_configured_precision(pipeline: FluxKontextPipeline) -> None:
    policy = build_policy(config(dtype="bfloat16"), pipeline.to(torch.float32))
    kinds = {name: weight.dtype for name, weight in pipeline.transformer.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".lora_" not in name} == {torch.bfloat16}
    trained = {name for name, weight in pipeline.transformer.named_parameters() if weight.requires_grad}
    assert trained == policy.trainable().keys()
    assert not any(weight.requires_grad for weight in pipeline.vae.parameters())


def test_another_kind_of_pipeline_is_one_line(pipeline: FluxKontextPipeline) -> None:
    with pytest.raises(ModelError, match=r"policy\.kind: uno takes a FluxPipeline, not a FluxKontextPipeline"):
        build_policy(config(kind="uno"), pipeline)
    with pytest.raises(ModelError, match="takes no pipeline"):
        build_policy(config(kind="mine:Policy"), pipeline)


def test_a_pipeline_is_one_policys_until_its_lora_is_taken_off(pipeline: FluxKontextPipeline) -> None:
    build_policy(config(), pipeline)
    with pytest.raises(ModelError, match="has a LoRA"):
        build_policy(config(), pipeline)
    pipeline.transformer.unload_lora()
    build_policy(config(), pipeline)


@pytest.mark.parametrize(("dtype", "within"), [("float32", 2e-6), ("bfloat16", 0.04)])
def test_channels_last_decode_to_the_same_images(
    folder: Path, dtype: str, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    for last in (False, True):
        monkeypatch.setattr(pipelines, "takes_channels_last", lambda *where, last=last: last)
        policy = proofs.built(PipelinePolicy, folder, dtype=dtype)  # type: ignore[type-abstract]
        weights = [part.weight for part in policy._pipeline.vae.modules() if isinstance(part, nn.Conv2d)]
        layouts = {w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.shape[-1] == 3}
        assert layouts == {last}
        images.append(policy.decode(proofs.noise(policy, 2)))
    assert proofs.apart(*images) <= within


@each_model("flux2-klein", "qwen-image-edit", "joyimage-edit-plus", of=())
def test_a_pipeline_in_memory_is_converted_as_loading_it_does(device: str, model: Model) -> None:
    """Rotary frequencies of text encoders, and what a model keeps in float32, are not rounded to bfloat16."""
    loaded = model.policy(dtype="bfloat16")
    for dtype in (torch.float32, torch.bfloat16):
        given = build_policy(loaded.config, proofs.stock(model.folder, dtype=dtype))
        dtypes = {name: weight.dtype for name, weight in state_of(loaded).items()}
        assert {name: weight.dtype for name, weight in state_of(given).items()} == dtypes
        one, other = model.encode(loaded), model.encode(given)
        assert all(torch.equal(rows, other.rows[name]) for name, rows in one.rows.items())


def state_of(policy: Any) -> dict[str, torch.Tensor]:
    """Return all weights and buffers of a policy's pipeline, also those that no file has."""
    parts = {name: part for name, part in policy._pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": value
        for name, part in parts.items()
        for key, value in [*part.named_parameters(), *part.named_buffers()]
    }
