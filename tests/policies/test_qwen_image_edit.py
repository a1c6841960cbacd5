"""The policy against diffusers' own QwenImageEditPlusPipeline, of the same tiny random weights."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_qwen
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image
from torch import Tensor

from customized_grpo.config import LoraConfig, PolicyConfig, RolloutConfig
from customized_grpo.method import SAMPLERS
from customized_grpo.models import ModelError
from customized_grpo.policies import build_policy
from customized_grpo.policies.qwen_image_edit import QwenImageEditPolicy
from customized_grpo.protocols import Conditions
from customized_grpo.training.rollout import Trajectories, draw_images, noise_levels
from customized_grpo.training.update import Items, replay

PROMPT = "a red bird in the snow"
STEPS = 4
LORA = LoraConfig(rank=4, alpha=6)
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _no_torchvision() -> Iterator[None]:
    with tiny_qwen.without_video():
        yield


@pytest.fixture(autouse=True)
def _small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's own sizes, at a 256th of their area and less."""
    monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(plus, "CONDITION_IMAGE_SIZE", 96 * 96)


@pytest.fixture(scope="module")
def folder_2509(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen.save_qwen_image_edit(tmp_path_factory.mktemp("2509"))


@pytest.fixture(scope="module")
def folder_2511(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the 2511 model: references are modulated as at time 0. Its noise levels have a fixed shift."""
    path = tmp_path_factory.mktemp("2511")
    return tiny_qwen.save_qwen_image_edit(path, zero_cond_t=True, dynamic_shifting=False)


@pytest.fixture(params=["folder_2509", "folder_2511"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def policy_of(folder: Path, **changes: Any) -> QwenImageEditPolicy:
    defaults: dict[str, Any] = {
        "kind": "qwen-image-edit",
        "device": "cpu",
        "height": 32,
        "width": 24,
        "reference_sizes": None,
        "lora": LORA,
    }
    policy = build_policy(PolicyConfig(path=str(folder), **{**defaults, **changes}))
    assert isinstance(policy, QwenImageEditPolicy)
    return policy


def picture(height: int = 40, width: int = 50, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


#: At the pipeline's own sizes, here: 64x64 and 96x32 pixels.
TWO = [picture(), picture(90, 30, seed=1)]


def noise(policy: QwenImageEditPolicy, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *policy.latent_shape, generator=generator)


@torch.no_grad()
def euler(policy: QwenImageEditPolicy, latents: Tensor, conditions: Conditions) -> Tensor:
    sigmas = policy.sigmas(STEPS)
    for now, after in pairwise(sigmas):
        velocity = policy.velocity(latents, now.expand(len(latents)), conditions)
        latents = latents + (after - now) * velocity
    return policy.decode(latents)


def stock(folder: Path, **parts: Any) -> QwenImageEditPlusPipeline:
    pipeline = QwenImageEditPlusPipeline.from_pretrained(folder, use_safetensors=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_picture(
    pipeline: QwenImageEditPlusPipeline, latents: Tensor, images: list[Image.Image], **options: Any
) -> Tensor:
    """What the pipeline itself draws from these latents without true classifier-free guidance."""
    defaults = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "pt"}
    return pipeline(
        image=images,
        true_cfg_scale=1.0,
        height=32,
        width=24,
        latents=latents,
        **{**defaults, **options},
    ).images


def tune(policy: QwenImageEditPolicy, scale: float = 0.1) -> None:
    """Move all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(scale * step.to(parameter.dtype))


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape and one.isfinite().all()
    return (one - other).abs().max().item()


# Rollouts


@pytest.mark.parametrize("images", [TWO[:1], TWO, TWO[::-1]], ids=["one", "two", "two swapped"])
def test_euler_rollout_is_the_pipelines_picture(either: Path, images: list[Image.Image]) -> None:
    policy = policy_of(either)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, images))
    expected = pipeline_picture(stock(either), noise(policy), images)
    assert drawn.shape == (1, 3, 32, 24) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 0.02
    assert difference(drawn, expected) < 1e-4


def test_sizes_that_are_given_replace_the_pipelines(folder_2509: Path) -> None:
    policy = policy_of(folder_2509, reference_sizes=[(65, 71), (96, 32)])  # no multiples of a token
    conditions = policy.encode(PROMPT, TWO)
    assert conditions.rows["reference_1"].shape == (1, 8, 8, 16)
    assert conditions.rows["reference_2"].shape == (1, 12, 4, 16)
    expected = pipeline_picture(stock(folder_2509), noise(policy), TWO)
    assert difference(euler(policy, noise(policy), conditions), expected) < 1e-4
    other = policy_of(folder_2509, reference_sizes=[(16, 24)]).encode(PROMPT, TWO)
    assert {tuple(row.shape) for name, row in other.rows.items() if "reference" in name} == {(1, 2, 3, 16)}
    assert torch.equal(other.rows["prompt_embeds"], conditions.rows["prompt_embeds"])


def test_noise_levels_are_the_schedulers(folder_2509: Path, folder_2511: Path) -> None:
    dynamic, static = (policy_of(f).sigmas(STEPS) for f in (folder_2509, folder_2511))
    assert static.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert dynamic[0] == 1 and dynamic[-2] == pytest.approx(0.02) and dynamic[-1] == 0
    assert dynamic.dtype == static.dtype == torch.float32
    pipeline = stock(folder_2509)
    pipeline_picture(pipeline, noise(policy_of(folder_2509)), TWO[:1])
    assert torch.equal(dynamic, pipeline.scheduler.sigmas)
    assert policy_of(folder_2511).sigmas(1).tolist() == [1, 0]
    for path, steps in ((folder_2511, 0), (folder_2509, 0), (folder_2509, 1)):
        with pytest.raises(ValueError, match="steps"):
            policy_of(path).sigmas(steps)


def test_every_input_reaches_the_velocity(either: Path) -> None:
    policy = policy_of(either)
    x, half = noise(policy), torch.tensor([0.5])
    conditions = policy.encode(PROMPT, TWO)
    seen = policy.encode(PROMPT, [picture(seed=2), TWO[1]])
    base = policy.velocity(x, half, conditions)
    others = {
        "latents": policy.velocity(noise(policy, seed=1), half, conditions),
        "sigma": policy.velocity(x, torch.tensor([0.51]), conditions),
        "prompt": policy.velocity(x, half, policy.encode("a blue cat", TWO)),
        "order": policy.velocity(x, half, policy.encode(PROMPT, TWO[::-1])),
        "what the text encoder sees": policy.velocity(
            x, half, Conditions({**conditions.rows, "prompt_embeds": seen.rows["prompt_embeds"]})
        ),
        "tokens": policy.velocity(
            x, half, Conditions({**seen.rows, "prompt_embeds": conditions.rows["prompt_embeds"]})
        ),
    }
    for name, other in others.items():
        assert difference(base, other) > 1e-4, name


def test_conditions_are_encoded_once_and_frozen(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    calls: list[object] = []
    policy._pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(None))
    conditions = policy.encode(PROMPT, TWO)
    assert len(conditions) == 1 and conditions.rows.keys() == {"prompt_embeds", "reference_1", "reference_2"}
    assert not any(row.requires_grad for row in conditions.rows.values())
    euler(policy, noise(policy), conditions)
    assert len(calls) == 1
    # A picture of another mode is read as RGB, and encoding draws no random numbers.
    again = policy.encode(PROMPT, [TWO[0].convert("RGBA"), TWO[1]])
    assert all(torch.equal(again.rows[name], row) for name, row in conditions.rows.items())


def test_a_batch_equals_its_samples(either: Path) -> None:
    policy = policy_of(either)
    tune(policy)
    pairs = [("a red bird in the snow", 0), ("a blue cat in the hats", 1), ("the dogs on a big hill", 2)]
    conditions = [policy.encode(prompt, [picture(seed=seed), TWO[1]]) for prompt, seed in pairs]
    x, sigma = noise(policy, 3), torch.tensor([1.0, 0.6, 0.1])
    with torch.no_grad():
        batch = policy.velocity(x, sigma, Conditions.join(conditions))
        for i, row in enumerate(conditions):
            single = policy.velocity(x[i : i + 1], sigma[i : i + 1], row)
            assert difference(batch[i], single[0]) < 1e-5
        pictures = policy.decode(x)
        assert difference(pictures[1], policy.decode(x[1:2])[0]) < 1e-5


def test_prompts_of_other_lengths_and_other_grids_are_no_company(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    one = policy.encode(PROMPT, TWO)
    for other in (policy.encode(PROMPT + "y", TWO), policy.encode(PROMPT, [TWO[0], picture(30, 90)])):
        with pytest.raises(ValueError, match="different shapes"):
            Conditions.join([one, other])


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_on_policy_ratios_are_exactly_one(either: Path, sampler: Any) -> None:
    policy = policy_of(either)
    tune(policy)
    config = RolloutConfig(sampler=sampler, steps=STEPS, batch_size=4, shift=None)
    sigmas = noise_levels(policy, config.steps, config.shift)
    prompts = ["a red bird", "a blue cat on the snow"]
    conditions = [policy.encode(prompt, TWO) for prompt in prompts for _ in range(3)]
    keys = [(prompt, number) for prompt in prompts for number in range(3)]
    drawn: list[Trajectories] = draw_images(policy, conditions, keys, config, sigmas, seed=0, iteration=0)
    assert [batch.images.tolist() for batch in drawn] == [[0, 1, 2], [3, 4, 5]]
    for batch in drawn:
        for t in range(config.steps - 1):
            rows = torch.arange(len(batch))
            items = Items.of(batch, rows, torch.full((len(batch),), t), torch.zeros(len(batch)), sigmas)
            _, _, density = replay(policy, items, SAMPLERS[sampler], config.eta, sigmas[1])
            assert density.requires_grad
            assert torch.equal((density - items.log_density).exp(), torch.ones(len(batch)))


def test_shapes_that_do_not_fit_are_refused(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    conditions = policy.encode(PROMPT, TWO[:1])
    with pytest.raises(ValueError, match="do not fit"):
        policy.velocity(noise(policy, 2), torch.ones(2), conditions)
    with pytest.raises(ValueError, match="do not fit"):
        policy.velocity(noise(policy)[:, 1:], torch.ones(1), conditions)


# What is trained


def test_only_the_lora_is_trainable_and_gets_gradients(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    named = policy.trainable()
    trainable = {id(parameter) for parameter in named.values()}
    assert len(trainable) == 2 * 12 * 2  # blocks, layers of each, A and B
    for part in policy._pipeline.components.values():
        for name, parameter in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            assert parameter.requires_grad == (id(parameter) in trainable), name
    tune(policy)
    velocity = policy.velocity(noise(policy), torch.tensor([0.5]), policy.encode(PROMPT, TWO))
    velocity.square().mean().backward()
    still = {n for n, p in named.items() if p.grad is None or not p.grad.any()}
    # What only moves the text tokens that leave the last block.
    ends = (".attn.add_q_proj.", ".attn.to_add_out.", ".txt_mlp.net.0.proj.", ".txt_mlp.net.2.")
    assert still == {n for n in named if "transformer_blocks.1." in n and any(end in n for end in ends)}


def test_gradient_checkpointing_changes_no_gradient(folder_2511: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = policy_of(folder_2511, gradient_checkpointing=checkpointing)
        tune(policy)
        assert policy._transformer.is_gradient_checkpointing is checkpointing
        policy.velocity(noise(policy), torch.tensor([0.5]), policy.encode(PROMPT, TWO)).square().mean().backward()
        gradients.append({n: p.grad for n, p in policy.trainable().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_reference_is_the_untuned_model(folder_2509: Path, lora: LoraConfig | None) -> None:
    policy = policy_of(folder_2509, lora=lora)
    conditions = policy.encode(PROMPT, TWO)

    def velocity() -> Tensor:
        return policy.velocity(noise(policy), torch.tensor([0.5]), conditions)

    untuned = velocity().detach()
    tune(policy)
    tuned = velocity()
    assert difference(tuned, untuned) > 1e-3
    with policy.reference():
        assert torch.equal(velocity(), untuned)
    assert torch.equal(velocity(), tuned)


def test_bfloat16_meets_the_pipelines_very_bits(either: Path) -> None:
    policy = policy_of(either, dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    assert policy._transformer.img_in.weight.dtype == torch.bfloat16
    conditions = policy.encode(PROMPT, TWO)
    assert {row.dtype for row in conditions.rows.values()} == {torch.bfloat16}
    pipeline = stock(either, dtype=torch.bfloat16)
    expected = pipeline_picture(pipeline, noise(policy), TWO, output_type="latent")
    pictures = pipeline_picture(pipeline, noise(policy), TWO)
    latents = noise(policy).to(torch.bfloat16)
    for now, after in pairwise(policy.sigmas(STEPS)):  # rounded where the pipeline rounds
        with torch.no_grad():
            velocity = policy.velocity(latents.float(), now.expand(1), conditions)
        assert velocity.dtype == torch.float32
        latents = (latents.float() + (after - now) * velocity.to(torch.bfloat16)).to(torch.bfloat16)
    assert latents.isfinite().all() and torch.equal(latents, expected)
    drawn = policy.decode(latents.float())
    assert drawn.dtype == torch.float32 and torch.equal(drawn, pictures.float())


# Saving and loading


def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(either: Path, tmp_path: Path) -> None:
    policy = policy_of(either)
    tune(policy)
    policy.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, TWO))
    pipeline = stock(either)
    untuned = pipeline_picture(pipeline, noise(policy), TWO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.load_lora_weights(tmp_path)
    tuned = pipeline_picture(pipeline, noise(policy), TWO)
    assert difference(drawn, tuned) < 1e-4
    assert difference(drawn, untuned) > 1e-2


def test_saved_full_weights_draw_the_same_in_the_stock_pipeline(folder_2509: Path, tmp_path: Path) -> None:
    policy = policy_of(folder_2509, lora=None)
    tune(policy, 0.02)
    policy.save(tmp_path)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, TWO))
    transformer = QwenImageTransformer2DModel.from_pretrained(tmp_path / "transformer")
    tuned = pipeline_picture(stock(folder_2509, transformer=transformer), noise(policy), TWO)
    assert difference(drawn, tuned) < 1e-4
    assert difference(drawn, pipeline_picture(stock(folder_2509), noise(policy), TWO)) > 1e-3


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_loading_gives_back_every_bit(folder_2509: Path, tmp_path: Path, lora: LoraConfig | None) -> None:
    policy, other = (policy_of(folder_2509, lora=lora) for _ in range(2))
    tune(policy)
    policy.save(tmp_path)
    other.load(tmp_path)
    assert other.trainable().keys() == policy.trainable().keys()
    for name, parameter in policy.trainable().items():
        assert torch.equal(other.trainable()[name], parameter), name


# Bad input


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_what_is_no_qwen_image_edit_plus_pipeline_is_refused(folder_2509: Path, tmp_path: Path) -> None:
    refused(lambda: policy_of(tmp_path / "nowhere"), "policy.path", "no such folder")
    other = tmp_path / "other"
    shutil.copytree(folder_2509, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "QwenImageEditPipeline"}))
    refused(lambda: policy_of(other), "is a QwenImageEditPipeline", "QwenImageEditPlusPipeline")


def test_a_guidance_distilled_model_is_refused(folder_2509: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_2509, tmp_path / "distilled")
    path = tmp_path / "distilled" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_embeds": True}))
    refused(lambda: policy_of(tmp_path / "distilled"), "policy.path", "guidance-distilled")


def test_no_reference_is_refused(folder_2509: Path) -> None:
    refused(lambda: policy_of(folder_2509).encode("two\nlines", []), "needs a reference image", "two\\nlines")


def test_sizes_below_one_token_are_refused(folder_2509: Path) -> None:
    policy = policy_of(folder_2509, reference_sizes=[(7, 64)])
    refused(lambda: policy.encode(PROMPT, TWO), "policy.reference_sizes", "8x8")


def test_lora_targets_that_are_not_there_are_refused(folder_2509: Path) -> None:
    lora = LoraConfig(rank=4, targets=["to_q", "to_z"])
    refused(lambda: policy_of(folder_2509, lora=lora), "policy.lora.targets", "'to_z'")
