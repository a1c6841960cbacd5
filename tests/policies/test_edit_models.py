"""References and prompts of LongCat-Image-Edit and JoyAI-Image-Edit-Plus against their pipelines."""

from __future__ import annotations

from pathlib import Path

import proofs
import pytest
import torch
from diffusers import JoyImageEditPlusTransformer3DModel
from embedded import embedded
from proofs import PROMPT, apart, euler, half_way, noise, refused
from tiny_models import Model

from customized_grpo.config import Config
from customized_grpo.planning import make_plan
from customized_grpo.planning.shapes import count
from customized_grpo.protocols import Conditions

longcat = pytest.mark.parametrize("model", ["longcat-image-edit"], indirect=True)
joyimage = pytest.mark.parametrize("model", ["joyimage-edit-plus"], indirect=True)
both = pytest.mark.parametrize("model", ["longcat-image-edit", "joyimage-edit-plus"], indirect=True)


@both
def test_a_plan_has_the_models_shapes(model: Model) -> None:
    policy = model.policy(reference_sizes=[(64, 72)])
    plan = make_plan(embedded(Config, policy=policy.config), references=len(model.source.references))
    pipeline = model.stock(policy)
    for name in ("transformer", "text_encoder", "vae"):
        assert plan.parameters[name] == count(getattr(pipeline, name)).parameters
    assert plan.trainable == sum(weight.numel() for weight in policy.trainable().values())
    assert plan.device["training"]["activations"] > 0


@pytest.mark.parametrize("model", ["longcat-image-edit", "joyimage-edit-plus", "qwen-image-edit"], indirect=True)
def test_a_reference_is_seen_by_the_text_encoder_and_as_tokens(model: Model) -> None:
    policy, (changed, *others) = model.policy(), model.source.references
    conditions = model.encode(policy)
    seen = policy.encode(PROMPT, [proofs.random_image(changed.height, changed.width, 9), *others])
    base = half_way(policy, conditions)
    for mixed in (
        {**conditions.rows, "prompt_embeds": seen.rows["prompt_embeds"]},
        {**seen.rows, "prompt_embeds": conditions.rows["prompt_embeds"]},
    ):
        assert apart(base, half_way(policy, Conditions(mixed))) > 1e-4


@longcat
def test_longcat_takes_one_reference_at_a_size_of_its_own_or_of_the_settings(model: Model) -> None:
    policy, image = model.policy(), model.source.references[0]
    own = policy.encode(PROMPT, [image]).rows
    other = model.policy(reference_sizes=[(65, 40), (24, 48)]).encode(PROMPT, [image]).rows
    assert (own["reference_1"].shape, other["reference_1"].shape) == ((1, 4, 3, 64), (1, 8, 5, 64))
    assert torch.equal(own["prompt_embeds"], other["prompt_embeds"])
    for images in ([], [image, image]):
        refused(lambda images=images: policy.encode("two\nlines", images), "one reference", "two\\nlines")  # type: ignore[misc]
    refused(lambda: policy.encode("a" * 97, [image]), "policy.max_sequence_length", "more than 96 tokens")


@joyimage
def test_joyimages_references_are_cropped_to_sizes_that_are_given(model: Model) -> None:
    own = model.encode(model.policy()).rows
    rows = model.encode(model.policy(reference_sizes=[(65, 71), (96, 32)])).rows  # no multiples of a token
    assert (rows["reference_1"].shape, rows["reference_2"].shape) == ((1, 8, 8, 16), (1, 12, 4, 16))
    assert own["reference_1"].shape == (1, 8, 9, 16) and torch.equal(own["reference_2"], rows["reference_2"])
    assert torch.equal(own["prompt_embeds"], rows["prompt_embeds"])


@joyimage
def test_a_merged_joyimage_is_a_pipeline_of_diffusers_own_classes(model: Model, tmp_path: Path) -> None:
    policy = model.policy()
    proofs.tune(policy)
    sampled = euler(policy, noise(policy), model.encode(policy))
    policy.save_merged(tmp_path, torch.float32)
    merged = proofs.stock(tmp_path)
    assert type(merged.transformer) is JoyImageEditPlusTransformer3DModel
    assert apart(sampled, model.draw(merged, noise(policy))) < 1e-4
