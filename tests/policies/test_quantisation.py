"""A quantised base with a LoRA on top. What needs the extra packages runs where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import proofs
import pytest
import torch
from diffusers import FluxTransformer2DModel, TorchAoConfig
from embedded import embedded
from proofs import LORA, NEAR, PROMPT, half_way, likeness, noise, refused, schemes
from pydantic import ValidationError
from tiny_models import Model, each_model

from customized_grpo.config import PolicyConfig
from customized_grpo.config.loading import load_config

HALF = torch.tensor([0.5])


@pytest.mark.parametrize("key", ["quantise", "quantise_text_encoders"])
@schemes
def test_a_missing_package_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, scheme: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    refused(lambda: proofs.kontext(folder, **{key: scheme}), f"policy.{key}: {scheme}", f"pip install {package}")


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"quantised weights cannot be trained; set policy\.lora"):
        embedded(PolicyConfig, lora=None, quantise="int8")
    with pytest.raises(ValueError, match=r"policy\.quantise"):
        load_config(None, ["policy.quantise=int3"])


@schemes
def test_the_untuned_model_is_the_quantised_one(folder: Path, scheme: str, package: str) -> None:
    pytest.importorskip(package)
    policy = proofs.kontext(folder, quantise=scheme, gradient_checkpointing=True)
    proofs.reference_is_untuned(policy, policy.encode(PROMPT, [proofs.random_image(16, 24, 0)]))


@schemes
def test_quantised_text_encoders_encode_nearly_alike(folder: Path, scheme: str, package: str) -> None:
    pytest.importorskip(package)
    prompts = [proofs.kontext(folder, quantise_text_encoders=one).encode(PROMPT, []) for one in (scheme, None)]
    one, other = (conditions.rows["prompt_embeds"] for conditions in prompts)
    assert not torch.equal(one, other)
    assert likeness(one, other) > NEAR[scheme]


@schemes
def test_offloaded_parts_work_quantised(folder: Path, tmp_path: Path, scheme: str, package: str) -> None:
    """As on 24 GB: all is quantised, sent to and fro, and text encoders are forgotten."""
    pytest.importorskip(package)
    both = {"quantise": scheme, "quantise_text_encoders": scheme}
    there = proofs.kontext(folder, **both)
    moved = proofs.kontext(folder, **both, offload=True, conditions=tmp_path)
    velocities = []
    for policy in (there, moved):
        conditions = policy.encode(PROMPT, [proofs.random_image(16, 24, 0)])
        velocities.append(policy.velocity(noise(policy), HALF, conditions))
        assert policy.decode(noise(policy)).isfinite().all()
    assert torch.equal(*velocities)


def test_eight_bits_are_those_of_diffusers(folder: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    policy = proofs.kontext(folder, quantise="int8", dtype="bfloat16")
    scheme = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    stock = FluxTransformer2DModel.from_pretrained(
        folder, subfolder="transformer", dtype=torch.bfloat16, quantization_config=scheme
    )
    ours = {name.replace(".base_layer", ""): weight for name, weight in policy._transformer.named_parameters()}
    compared = 0
    for name, weight in stock.named_parameters():
        assert type(weight) is type(ours[name]), name
        if hasattr(weight, "qdata"):
            compared += 1
            assert torch.equal(weight.qdata, ours[name].qdata) and torch.equal(weight.scale, ours[name].scale), name
    assert compared > 10


def test_four_bits_are_nf4_of_blocks_of_64(folder: Path) -> None:
    """By definition (arXiv 2305.14314): of 64 weights the absolute maximum, and the nearest of 16 quantiles."""
    functional = pytest.importorskip("bitsandbytes.functional")
    policy, plain = (proofs.kontext(folder, quantise=scheme, lora=LORA) for scheme in ("nf4", None))
    name = "transformer_blocks.0.ff.net.0.proj"
    ours, exact = (p._transformer.get_submodule(name).base_layer.weight for p in (policy, plain))
    blocks = exact.detach().reshape(-1, 64)
    levels = functional.get_4bit_type("nf4", device="cpu")
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = levels[(scaled[..., None] - levels).abs().argmin(-1)] * blocks.abs().amax(1, keepdim=True)
    found = functional.dequantize_4bit(ours.data, ours.quant_state)
    # The maxima are quantised once more, to 8 bits.
    assert proofs.apart(found, nearest) < 0.05 * blocks.abs().max().item()
    assert likeness(found, nearest) > 0.999


@each_model("joyimage-edit-plus", of=())
def test_weights_that_a_model_keeps_in_float32_are_not_quantised(device: str, model: Model) -> None:
    pytest.importorskip("bitsandbytes")
    policy = model.policy(quantise="nf4", dtype="bfloat16")
    plain = model.policy(dtype="bfloat16")
    with torch.no_grad():
        both = [half_way(one, model.encode(one)) for one in (policy, plain)]
    assert likeness(*both) > NEAR["nf4"]
