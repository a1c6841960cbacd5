"""A quantised base with a LoRA on top. What needs the extra packages runs where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from proofs import PROMPT, noise, refused
from pydantic import ValidationError

from customized_grpo.config import PolicyConfig
from customized_grpo.configuration import load_config
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import FluxKontextPolicy
from customized_grpo.training.rollout import noise_levels, sample_trajectories

HALF = torch.tensor([0.5])


def policy_of(folder: Path, **changes: Any) -> FluxKontextPolicy:
    return proofs.built(FluxKontextPolicy, folder, **{"reference_sizes": [(16, 24)], **changes})


@pytest.mark.parametrize("key", ["quantise", "quantise_text_encoders"])
@pytest.mark.parametrize(("scheme", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_package_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, scheme: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    refused(lambda: policy_of(folder, **{key: scheme}), f"policy.{key}: {scheme}", f"pip install {package}")


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"cannot be tuned itself; set policy\.lora"):
        PolicyConfig(lora=None, quantise="int8")
    with pytest.raises(ValidationError, match="cannot be fused into quantised weights"):
        PolicyConfig(kind="uno", adapter="a.safetensors", quantise="nf4")
    with pytest.raises(ValueError, match=r"policy\.quantise"):
        load_config(None, ["policy.quantise=int3"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lora_on_eight_bits_learns_and_replays_its_own_bits(folder: Path, tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("torchao")
    policy, plain = (policy_of(folder, dtype=dtype, quantise=scheme) for scheme in ("int8", None))
    conditions = policy.encode(PROMPT, [proofs.random_picture(16, 24, 0)])
    proofs.only_the_lora_is_trainable(policy)
    weight = policy._transformer.transformer_blocks[0].attn.to_q.base_layer.weight
    assert type(weight).__name__ == "Int8Tensor"
    one, other = (p.velocity(noise(p), HALF, conditions).detach() for p in (policy, plain))
    assert not torch.equal(one, other)
    assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.99
    proofs.tune(policy)
    sigmas = noise_levels(policy, 4, None)
    two = conditions.select(torch.zeros(2, dtype=torch.long))
    steps = torch.randn(2, 3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    step = SAMPLERS["dance"]
    drawn = sample_trajectories(policy, torch.arange(2), two, noise(policy, 2), steps, sigmas, 0, step, 0.4)
    proofs.ratios_are_one(policy, drawn, "dance", 0.4, sigmas)
    policy._transformer.zero_grad()
    assert proofs.without_gradient(policy, conditions) == set()
    policy.save(tmp_path)
    plain.load(tmp_path)
    assert all(torch.equal(w, plain.trainable()[n]) for n, w in policy.trainable().items())


def test_quantised_text_encoders_encode_nearly_alike(folder: Path) -> None:
    pytest.importorskip("torchao")
    prompts = [policy_of(folder, quantise_text_encoders=scheme).encode(PROMPT, []) for scheme in ("int8", None)]
    one, other = (conditions.rows["prompt_embeds"].flatten() for conditions in prompts)
    assert not torch.equal(one, other)
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99
