"""Qwen-Image-Edit's references and noise levels against its pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import proofs
import pytest
import torch
from proofs import PROMPT, apart, euler, noise, random_image, refused
from tiny_models import Model

from customized_grpo.policies.qwen_image_edit import QwenImageEditPolicy

one = pytest.mark.parametrize("model", ["qwen-image-edit"], indirect=True)


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
def test_a_guidance_distilled_model_and_no_reference_are_refused(model: Model, tmp_path: Path) -> None:
    refused(lambda: model.policy().encode("two\nlines", []), "needs a reference image", "two\\nlines")
    shutil.copytree(model.folder, tmp_path / "distilled")
    path = tmp_path / "distilled" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_embeds": True}))
    refused(
        lambda: proofs.built(QwenImageEditPolicy, tmp_path / "distilled", kind="qwen-image-edit"),
        "policy.path", "guidance-distilled",
    )  # fmt: skip
