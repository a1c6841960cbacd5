"""FLUX.2's references, guidance, noise levels and prompts against its pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import pytest
import tiny
import tiny_flux2
import torch
from PIL import Image, ImageOps
from proofs import PROMPT, STEPS, apart, euler, noise, refused, stock
from tiny_models import TOKENS, Model
from torch import Tensor

from customized_grpo.policies.flux2 import Flux2Policy

either = pytest.mark.parametrize("model", ["flux2-klein", "flux2-dev"], indirect=True)
klein = pytest.mark.parametrize("model", ["flux2-klein"], indirect=True)


def policy_of(folder: Path, **changes: Any) -> Flux2Policy:
    defaults = {"kind": "flux2", "reference_sizes": None, "max_sequence_length": TOKENS}
    return proofs.built(Flux2Policy, folder, **{**defaults, **changes})


LANCZOS = Image.Resampling.LANCZOS


def make_image(height: int = 64, width: int = 72, seed: int = 0) -> Image.Image:
    return proofs.random_image(height, width, seed)


@either
def test_references_are_resized_and_then_go_the_pipelines_way(model: Model) -> None:
    policy = model.policy(reference_sizes=[(64, 72), (70, 64)])
    images = [make_image(90, 101, 1), make_image(200, 180, 2)]
    conditions = policy.encode(PROMPT, images)
    assert [conditions.rows[f"reference_{k}"].shape[1:3] for k in (1, 2)] == [(8, 9), (8, 8)]
    resized = [ImageOps.fit(images[0], (72, 64), LANCZOS), ImageOps.fit(images[1], (64, 70), LANCZOS)]
    expected = model.draw(model.stock(policy), noise(policy), image=resized)
    assert apart(euler(policy, noise(policy), conditions), expected) < 1e-4


@either
def test_large_references_are_shrunk_as_the_pipeline_does(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def spy(image: Tensor, generator: object) -> Tensor:
        seen.append(image)
        raise SeenError

    seen: list[Tensor] = []
    policy = model.policy()
    pipeline = model.stock(policy)
    monkeypatch.setattr(policy._pipeline, "_encode_vae_image", spy)
    monkeypatch.setattr(pipeline, "_encode_vae_image", spy)
    with pytest.raises(SeenError):
        policy.encode(PROMPT, [make_image(1101, 1003)])
    with pytest.raises(SeenError):
        model.draw(pipeline, noise(policy), image=[make_image(1101, 1003)])
    assert seen[0].shape == (1, 3, 1072, 976)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("model", ["flux2-klein-base"], indirect=True)
def test_guidance_of_a_klein_base_model_is_the_pipelines(model: Model, scale: float) -> None:
    policy = model.policy(true_cfg=scale)
    sampled, pipeline = euler(policy, noise(policy), model.encode(policy)), model.stock(policy)
    assert apart(sampled, model.draw(pipeline, noise(policy), guidance_scale=scale)) < 1e-4
    assert apart(sampled, model.draw(pipeline, noise(policy))) > 1e-3


@either
def test_distilled_models_refuse_classifier_free_guidance(model: Model) -> None:
    remedy = "klein-base" if model.name == "flux2-klein" else "policy.guidance"
    refused(lambda: model.policy(true_cfg=4.0), "policy.true_cfg", "distilled", remedy)


@klein
def test_a_fixed_shift_of_noise_levels_is_the_pipelines(model: Model, tmp_path: Path) -> None:
    fixed = tiny.save(tiny_flux2.klein(dynamic_shifting=False), tmp_path)
    policy = policy_of(fixed)
    assert policy.sigmas(STEPS).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    sampled = euler(policy, noise(policy), policy.encode(PROMPT, []))
    assert apart(sampled, model.draw(stock(fixed), noise(policy), [])) < 1e-4


@either
def test_the_lora_is_on_all_linear_layers_of_the_blocks(model: Model) -> None:
    policy = model.policy()
    blocks = [n for n, m in policy._transformer.named_modules() if isinstance(m, torch.nn.Linear) and "blocks" in n]
    adapted = {name.split(".lora_")[0] for name in policy.trainable()}
    assert adapted == {n.removesuffix(".base_layer") for n in blocks if ".lora_" not in n}


@pytest.mark.parametrize(("model", "tokens"), [("flux2-klein", 6), ("flux2-dev", 24)], indirect=["model"])
def test_lengths_that_hold_no_prompt_are_refused(model: Model, tokens: int) -> None:
    policy = model.policy(max_sequence_length=tokens)
    policy.encode("", [])
    refused(lambda: policy.encode(PROMPT, []), "policy.max_sequence_length", "give 512")


@klein
def test_references_that_the_pipeline_refuses_are_refused(model: Model) -> None:
    policy = model.policy()
    for height, width in ((63, 80), (64, 520)):
        refused(lambda h=height, w=width: policy.encode(PROMPT, [make_image(h, w)]), "policy.reference_sizes")
