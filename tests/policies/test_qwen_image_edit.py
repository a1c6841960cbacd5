"""Qwen-Image-Edit's references and noise levels against its pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import proofs
import pytest
import torch
from proofs import PROMPT, STEPS, apart, euler, half_way, noise, random_image, refused
from tiny_models import Model

from customized_grpo.policies.qwen_image_edit import QwenImageEditPolicy
from customized_grpo.protocols import Conditions

either = pytest.mark.parametrize("model", ["qwen-image-edit", "qwen-image-edit-2511"], indirect=True)
one = pytest.mark.parametrize("model", ["qwen-image-edit"], indirect=True)


@either
def test_one_reference_and_two_in_any_order_are_the_pipelines(model: Model) -> None:
    policy = model.policy()
    pipeline, two = model.stock(policy), list(model.source.references)
    for images in (two[:1], two[::-1]):
        sampled = euler(policy, noise(policy), policy.encode(PROMPT, images))
        assert apart(sampled, model.draw(pipeline, noise(policy), image=images)) < 1e-4


@one
def test_sizes_that_are_given_replace_the_pipelines(model: Model) -> None:
    policy = model.policy(reference_sizes=[(65, 71), (96, 32)])  # no multiples of a token
    images = [random_image(64, 64, 0), random_image(96, 32, 1)]  # of these shapes: nothing is cropped
    conditions = policy.encode(PROMPT, images)
    assert conditions.rows["reference_1"].shape == (1, 8, 8, 16)
    assert conditions.rows["reference_2"].shape == (1, 12, 4, 16)
    assert (
        apart(euler(policy, noise(policy), conditions), model.draw(model.stock(policy), noise(policy), image=images))
        < 1e-4
    )
    other = model.policy(reference_sizes=[(16, 24)]).encode(PROMPT, images)
    assert {tuple(row.shape) for name, row in other.rows.items() if "reference" in name} == {(1, 2, 3, 16)}
    assert torch.equal(other.rows["prompt_embeds"], conditions.rows["prompt_embeds"])


@one
def test_noise_levels_are_the_schedulers(model: Model) -> None:
    policy = model.policy()
    levels = policy.sigmas(STEPS)
    assert levels[0] == 1 and levels[-2] == pytest.approx(0.02) and levels[-1] == 0 and levels.dtype == torch.float32
    pipeline = model.stock(policy)
    model.draw(pipeline, noise(policy))
    assert torch.equal(levels, pipeline.scheduler.sigmas)
    for steps in (0, 1):
        with pytest.raises(ValueError, match="steps"):
            policy.sigmas(steps)


@either
def test_a_reference_is_seen_by_the_text_encoder_and_as_tokens(model: Model) -> None:
    policy = model.policy()
    conditions = model.encode(policy)
    seen = policy.encode(PROMPT, [random_image(40, 50, 2), model.source.references[1]])
    base = half_way(policy, conditions)
    for mixed in (
        {**conditions.rows, "prompt_embeds": seen.rows["prompt_embeds"]},
        {**seen.rows, "prompt_embeds": conditions.rows["prompt_embeds"]},
    ):
        assert apart(base, half_way(policy, Conditions(mixed))) > 1e-4


@one
def test_image_tokens_have_positions_on_their_grid(model: Model) -> None:
    """Time, row and column; text continues after the largest (Qwen2-VL, arXiv 2409.12191, section 2.1)."""
    policy, image = model.policy(), model.source.references[1]
    encoder, ids, positions = policy._pipeline.text_encoder, [], []
    with (
        encoder.register_forward_pre_hook(lambda _, __, given: ids.append(given["input_ids"][0]), with_kwargs=True),
        encoder.model.language_model.register_forward_pre_hook(
            lambda _, __, given: positions.append(given["position_ids"][-3:, 0]), with_kwargs=True
        ),
    ):
        conditions = policy.encode(PROMPT, [image])
    places = (ids[0] == encoder.config.image_token_id).nonzero().flatten()
    rows, columns, start = 6, 2, int(places[0])  # 160 x 64 pixels by the pipeline's rule; a token has about 28 x 28
    grid = torch.cartesian_prod(torch.tensor([0]), torch.arange(rows), torch.arange(columns)).T
    text = torch.arange(len(ids[0]) - start - rows * columns).expand(3, -1)
    assert torch.equal(
        positions[0], torch.cat([torch.arange(start).expand(3, -1), start + grid, start + rows + text], dim=1)
    )
    seen = policy._pipeline.image_processor.resize(image, 160, 64)
    expected, _ = model.stock(policy).encode_prompt(PROMPT, image=[seen])
    assert torch.equal(conditions.rows["prompt_embeds"], expected)


@one
def test_prompts_of_other_lengths_cannot_share_a_batch(model: Model) -> None:
    policy = model.policy()
    with pytest.raises(ValueError, match="different shapes"):
        Conditions.join([model.encode(policy), model.encode(policy, PROMPT + "y")])


@one
def test_a_guidance_distilled_model_and_no_reference_are_refused(model: Model, tmp_path: Path) -> None:
    refused(lambda: model.policy().encode("two\nlines", []), "needs a reference image", "two\\nlines")
    shutil.copytree(model.folder, tmp_path / "distilled")
    path = tmp_path / "distilled" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_embeds": True}))
    refused(
        lambda: proofs.built(QwenImageEditPolicy, tmp_path / "distilled", kind="qwen-image-edit"),
        "policy.path", "guidance-distilled",
    )  # fmt: skip
