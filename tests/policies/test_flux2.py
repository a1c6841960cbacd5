"""FLUX.2's references, guidance, noise levels and prompts against its pipelines."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageOps
from proofs import PROMPT, apart, euler, noise, random_image, refused
from tiny_models import Model
from torch import Tensor

either = pytest.mark.parametrize("model", ["flux2-klein", "flux2-dev"], indirect=True)
klein = pytest.mark.parametrize("model", ["flux2-klein"], indirect=True)


@either
def test_references_are_resized_and_then_go_the_pipelines_way(model: Model) -> None:
    policy = model.policy(reference_sizes=[(64, 72), (70, 64)])
    images = [random_image(90, 101, 1), random_image(200, 180, 2)]
    conditions = policy.encode(PROMPT, images)
    assert [conditions.rows[f"reference_{k}"].shape[1:3] for k in (1, 2)] == [(8, 9), (8, 8)]
    resized = [
        ImageOps.fit(images[0], (72, 64), Image.Resampling.LANCZOS),
        ImageOps.fit(images[1], (64, 70), Image.Resampling.LANCZOS),
    ]
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
        policy.encode(PROMPT, [random_image(1101, 1003, 0)])
    with pytest.raises(SeenError):
        model.draw(pipeline, noise(policy), image=[random_image(1101, 1003, 0)])
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
        refused(lambda h=height, w=width: policy.encode(PROMPT, [random_image(h, w, 0)]), "policy.reference_sizes")
