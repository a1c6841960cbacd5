"""The policy against diffusers' own FluxPipeline, of the same tiny random weights, and UNO's LoRA by other ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import proofs
import pytest
import tiny
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

import customized_grpo
from customized_grpo.config import LoraConfig, PolicyConfig, RolloutConfig
from customized_grpo.configuration import load_config
from customized_grpo.method import SAMPLERS
from customized_grpo.models import ModelError
from customized_grpo.policies import build_policy
from customized_grpo.policies.uno import UnoPolicy, position_ids
from customized_grpo.policies.uno_lora import fuse_uno_lora, uno_lora_by_layer
from customized_grpo.protocols import Conditions
from customized_grpo.training.rollout import draw_images, noise_levels
from customized_grpo.training.update import Items, replay

PROMPT = "a red bird in the snow"
STEPS = 4
WIDTH = 32  # of the tiny transformer
LAYERS = 2
LORA = LoraConfig(rank=4, alpha=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FluxPipeline, its noise levels shifted by the size of the picture as FLUX.1's are."""
    return tiny.save_flux(tmp_path_factory.mktemp("flux"), layers=LAYERS, dynamic_shifting=True)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("adapter") / "dit_lora.safetensors", uno_lora())


def uno_lora(rank: int = 6, width: int = WIDTH, layers: int = LAYERS, singles: int | None = None) -> dict[str, Tensor]:
    """Random weights under UNO's names, in the shapes of its layers."""
    shapes: dict[str, tuple[int, int]] = {}  # outputs, inputs
    for i in range(layers):
        for stream in (1, 2):
            shapes[f"double_blocks.{i}.processor.qkv_lora{stream}"] = 3 * width, width
            shapes[f"double_blocks.{i}.processor.proj_lora{stream}"] = width, width
    for i in range(layers if singles is None else singles):
        shapes[f"single_blocks.{i}.processor.qkv_lora"] = 3 * width, width
        shapes[f"single_blocks.{i}.processor.proj_lora"] = width, 5 * width
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, (outputs, inputs) in shapes.items():
        weights[f"{name}.down.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        weights[f"{name}.up.weight"] = 0.3 * torch.randn(outputs, rank, generator=generator)
    return weights


def save(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, path)
    return path


def policy_of(folder: Path, **changes: Any) -> UnoPolicy:
    defaults: dict[str, Any] = {
        "kind": "uno",
        "device": "cpu",
        "height": 32,
        "width": 24,
        "reference_sizes": [(16, 24), (24, 16), (16, 16)],
        "lora": LORA,
    }
    policy = build_policy(PolicyConfig(path=str(folder), **{**defaults, **changes}))
    assert isinstance(policy, UnoPolicy)
    return policy


def picture(height: int = 16, width: int = 24, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def noise(policy: UnoPolicy, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def half_way(policy: UnoPolicy, conditions: Conditions) -> Tensor:
    return policy.velocity(noise(policy), torch.tensor([0.5]), conditions)


@torch.no_grad()
def euler(policy: UnoPolicy) -> Tensor:
    """The picture without references."""
    latents, conditions = noise(policy), policy.encode(PROMPT, [])
    for now, after in pairwise(policy.sigmas(STEPS)):
        latents = latents + (after - now) * policy.velocity(latents, now.expand(1), conditions)
    return policy.decode(latents)


def stock(folder: Path) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_picture(pipeline: FluxPipeline, policy: UnoPolicy) -> Tensor:
    """What the pipeline itself draws from the same noise with the policy's default settings."""
    return pipeline(
        prompt=PROMPT,
        height=32,
        width=24,
        latents=noise(policy),
        guidance_scale=2.5,
        num_inference_steps=STEPS,
        max_sequence_length=24,
        output_type="pt",
    ).images


def tune(policy: UnoPolicy, scale: float = 0.1) -> None:
    """Move all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in ("policy.", *words):
        assert word in text


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()


# Rollouts


def test_without_references_it_is_the_pipelines_picture(folder: Path) -> None:
    policy = policy_of(folder)
    drawn, expected = euler(policy), stock_picture(stock(folder), policy)
    assert drawn.shape == (1, 3, 32, 24) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 0.05
    assert difference(drawn, expected) < 1e-4


def test_every_input_reaches_the_velocity(folder: Path) -> None:
    policy = policy_of(folder)
    base = half_way(policy, policy.encode(PROMPT, [picture()]))
    others = {
        "prompt": half_way(policy, policy.encode("a blue cat", [picture()])),
        "reference": half_way(policy, policy.encode(PROMPT, [picture(seed=1)])),
        "no reference": half_way(policy, policy.encode(PROMPT, [])),
        "guidance": half_way(policy_of(folder, guidance=4.0), policy.encode(PROMPT, [picture()])),
        "sigma": policy.velocity(noise(policy), torch.tensor([0.6]), policy.encode(PROMPT, [picture()])),
    }
    for name, other in others.items():
        assert difference(other, base) > 1e-4, name


def test_a_batch_equals_its_samples(folder: Path, adapter: Path) -> None:
    policy = policy_of(folder, adapter=str(adapter))
    tune(policy)
    texts = ["a red bird", "a blue cat on the snow", "the dog"]
    conditions = [policy.encode(text, [picture(seed=k), picture(24, 16, 9 + k)]) for k, text in enumerate(texts)]
    x, sigma = noise(policy, 3), torch.tensor([1.0, 0.6, 0.1])
    with torch.no_grad():
        batch = policy.velocity(x, sigma, Conditions.join(conditions))
        for i, row in enumerate(conditions):
            single = policy.velocity(x[i : i + 1], sigma[i : i + 1], row)
            assert difference(batch[i], single[0]) < 1e-5


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_on_policy_ratios_are_exactly_one(folder: Path, adapter: Path, sampler: Any) -> None:
    policy = policy_of(folder, adapter=str(adapter))
    tune(policy)
    config = RolloutConfig(sampler=sampler, steps=STEPS, batch_size=4, shift=None)
    sigmas = noise_levels(policy, config.steps, config.shift)
    conditions = [policy.encode(PROMPT, [picture(), picture(24, 16, 1)])] * 3
    keys = [(PROMPT, number) for number in range(3)]
    for batch in draw_images(policy, conditions, keys, config, sigmas, range(STEPS - 1), seed=0, iteration=0):
        for t in range(config.steps - 1):
            rows = torch.arange(len(batch))
            items = Items.of(batch, rows, torch.full((len(batch),), t), torch.zeros(len(batch)), sigmas)
            _, _, density = replay(policy, items, SAMPLERS[sampler], config.eta, sigmas[1])
            assert density.requires_grad
            assert torch.equal((density - items.log_density).exp(), torch.ones(len(batch)))


# References


def test_position_ids_stand_on_a_diagonal() -> None:
    one = position_ids([(2, 3), (1, 2)])
    picture_ids = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert one.tolist() == [*picture_ids, [0, 2, 3], [0, 2, 4]]
    two = position_ids([(2, 3), (1, 2), (2, 1)])
    assert two.tolist() == [*picture_ids, [0, 2, 3], [0, 2, 4], [0, 3, 5], [0, 4, 5]]
    assert one.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2])
def test_references_are_appended_with_their_ids(folder: Path, count: int) -> None:
    policy = policy_of(folder)
    pictures = [picture(16, 24, 1), picture(24, 16, 2)][:count]
    drawn = half_way(policy, policy.encode(PROMPT, pictures))
    # The picture has 4x3 tokens, the references 2x3 and 3x2.
    ids = [[0, r, c] for r in range(4) for c in range(3)]
    ids += [[0, r, c] for r in (4, 5) for c in (3, 4, 5)]
    ids += [[0, r, c] for r in (6, 7, 8) for c in (6, 7)] if count == 2 else []

    pipeline, tokens = stock(folder), [noise(policy)]
    embeds, pooled, text_ids = pipeline.encode_prompt(PROMPT, max_sequence_length=24)
    for image in pictures:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            z = pipeline.vae.encode(pixels).latent_dist.mean
        z = ((z - 0.1) * 0.7).unfold(2, 2, 2).unfold(3, 2, 2)  # (1, channels, rows, columns, 2, 2)
        tokens.append(z.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))

    @torch.no_grad()
    def velocity(ids: Tensor) -> Tensor:
        return pipeline.transformer(
            hidden_states=torch.cat(tokens, 1),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([2.5]),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0][:, :12]

    right = torch.tensor(ids, dtype=torch.float32)
    assert difference(drawn, velocity(right)) < 1e-4
    moved, permuted = right.clone(), right.clone()
    moved[12:, 1:] += 1
    permuted[12:] = right[12:].flip(0)
    for wrong in (moved, permuted):
        assert difference(drawn, velocity(wrong)) > 1e-3
    if count == 2:
        swapped = half_way(policy, policy.encode(PROMPT, pictures[::-1]))
        assert difference(drawn, swapped) > 1e-3
        with pytest.raises(ValueError, match="different shapes"):
            Conditions.join([policy.encode(PROMPT, pictures), policy.encode(PROMPT, pictures[::-1])])


@pytest.mark.parametrize(("count", "sides"), [(1, (512, 297, 296)), (2, (320, 185, 184))])
def test_unos_own_sizes(folder: Path, count: int, sides: tuple[int, int, int]) -> None:
    policy = policy_of(folder, reference_sizes=None)
    image = picture(131, 76)
    width, shorter, cropped = sides
    rows = policy.encode(PROMPT, [image.transpose(Image.Transpose.ROTATE_90)] * count).rows
    given = image.transpose(Image.Transpose.ROTATE_90).resize((width, shorter), Image.Resampling.LANCZOS)
    given = given.crop((0, 0, width, cropped))
    expected = policy_of(folder, reference_sizes=[(cropped, width)]).encode(PROMPT, [given] * count).rows
    assert rows.keys() == expected.keys() and f"reference_{count}" in rows
    for name, row in expected.items():
        assert torch.equal(rows[name], row), name
    upright = policy.encode(PROMPT, [image] * count).rows["reference_1"]
    assert upright.shape[1:3] == (width // 8, cropped // 8)
    square = policy.encode(PROMPT, [picture(49, 49)] * count).rows["reference_1"]
    assert square.shape[1:3] == (width // 8, width // 8)


def test_sizes_below_one_token_are_refused(folder: Path) -> None:
    refused(lambda: policy_of(folder, reference_sizes=[(7, 64)]), "policy.reference_sizes", "8x8")
    policy = policy_of(folder, reference_sizes=None)
    refused(lambda: policy.encode(PROMPT, [picture(4, 400)]), "policy.reference_sizes", "8x8")


# UNO's LoRA


def with_terms_by_hooks(transformer: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    """Add the terms to what the layers put out, as UNO's processors do; the keys that this used."""
    used: set[str] = set()

    def add(layer: nn.Module, name: str, third: int | None) -> None:
        down, up = weights[f"{name}.down.weight"], weights[f"{name}.up.weight"]
        used.update({f"{name}.down.weight", f"{name}.up.weight"})

        def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            term = inputs[0] @ down.T @ up.T
            return output + (term if third is None else term.unflatten(-1, (3, -1))[..., third, :])

        layer.register_forward_hook(hook)

    model: Any = transformer
    for i, block in enumerate(model.transformer_blocks):
        a, name = block.attn, f"double_blocks.{i}.processor"
        for third, (image, text) in enumerate([(a.to_q, a.add_q_proj), (a.to_k, a.add_k_proj), (a.to_v, a.add_v_proj)]):
            add(image, f"{name}.qkv_lora1", third)
            add(text, f"{name}.qkv_lora2", third)
        add(a.to_out[0], f"{name}.proj_lora1", None)
        add(a.to_add_out, f"{name}.proj_lora2", None)
    for i, block in enumerate(model.single_transformer_blocks):
        for third, layer in enumerate([block.attn.to_q, block.attn.to_k, block.attn.to_v]):
            add(layer, f"single_blocks.{i}.processor.qkv_lora", third)
        add(block.proj_out, f"single_blocks.{i}.processor.proj_lora", None)
    return used


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_the_fused_transformer_is_that_with_the_terms_added(
    folder: Path, adapter: Path, lora: LoraConfig | None
) -> None:
    plain, fused = policy_of(folder, lora=lora), policy_of(folder, lora=lora, adapter=str(adapter))
    conditions = plain.encode(PROMPT, [picture(), picture(24, 16, 1)])
    without = half_way(plain, conditions)
    assert with_terms_by_hooks(plain._transformer, uno_lora()) == uno_lora().keys()
    expected, drawn = half_way(plain, conditions), half_way(fused, conditions)
    assert difference(drawn, expected) < 1e-5
    assert difference(drawn, without) > 1e-2
    # The untuned model is the fused one.
    tune(fused, 0.02)
    assert difference(half_way(fused, conditions), drawn) > 1e-3
    with fused.reference():
        assert torch.equal(half_way(fused, conditions), drawn)


def test_each_part_moves_its_own_layers_alone(folder: Path, tmp_path: Path) -> None:
    """Weights before and after each single term, against the layout of BFL's qkv: thirds by rows."""
    weights = uno_lora()
    names = sorted({key.rsplit(".", 2)[0] for key in weights})
    double, single = "transformer_blocks.1.attn", "single_transformer_blocks.1"
    layers = {
        "double_blocks.1.processor.qkv_lora1": [f"{double}.to_{x}" for x in "qkv"],
        "double_blocks.1.processor.qkv_lora2": [f"{double}.add_{x}_proj" for x in "qkv"],
        "double_blocks.1.processor.proj_lora1": [f"{double}.to_out.0"],
        "double_blocks.1.processor.proj_lora2": [f"{double}.to_add_out"],
        "single_blocks.1.processor.qkv_lora": [f"{single}.attn.to_{x}" for x in "qkv"],
        "single_blocks.1.processor.proj_lora": [f"{single}.proj_out"],
    }
    assert [name for name in names if "blocks.1." in name] == sorted(layers)
    for name, moved in layers.items():
        transformer = stock(folder).transformer
        before = {key: weight.clone() for key, weight in transformer.state_dict().items()}
        part = {key: weight for key, weight in weights.items() if key.startswith(f"{name}.")}
        path = save(tmp_path / "part.safetensors", part)
        fuse_uno_lora(transformer, path)
        change = {k: w - before[k] for k, w in transformer.state_dict().items() if not torch.equal(w, before[k])}
        assert sorted(change) == sorted(f"{layer}.weight" for layer in moved)
        joined = torch.cat([change[f"{layer}.weight"] for layer in moved])
        assert difference(joined, part[f"{name}.up.weight"] @ part[f"{name}.down.weight"]) < 1e-5


def test_the_stock_pipeline_reads_the_same_file_to_the_same_end(folder: Path, adapter: Path, tmp_path: Path) -> None:
    policy = policy_of(folder, adapter=str(adapter))
    pipeline = stock(folder)
    pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name, adapter_name="uno")
    assert difference(euler(policy), stock_picture(pipeline, policy)) < 1e-4
    # And the LoRA trained on top, beside it.
    before = euler(policy)
    tune(policy)
    policy.save(tmp_path)
    pipeline.load_lora_weights(tmp_path, adapter_name="trained")
    pipeline.set_adapters(["uno", "trained"], [1.0, 1.0])
    assert difference(euler(policy), stock_picture(pipeline, policy)) < 1e-4
    assert difference(euler(policy), before) > 1e-2


@pytest.mark.parametrize(("scheme", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_it_is_fused_before_weights_are_quantised(
    folder: Path, adapter: Path, tmp_path: Path, scheme: str, package: str
) -> None:
    """As a pipeline that has it in its weights already, and is quantised while it is loaded."""
    pytest.importorskip(package)
    pipeline = stock(folder)
    fuse_uno_lora(pipeline.transformer, adapter)
    pipeline.save_pretrained(tmp_path, safe_serialization=True)
    policy, expected = policy_of(folder, adapter=str(adapter), quantise=scheme), policy_of(tmp_path, quantise=scheme)
    assert type(policy._transformer.transformer_blocks[0].attn.to_q.base_layer.weight) is not nn.Parameter
    conditions = policy.encode(PROMPT, [picture()])
    assert torch.equal(half_way(policy, conditions), half_way(expected, conditions))
    assert difference(half_way(policy, conditions), half_way(policy_of(folder, quantise=scheme), conditions)) > 1e-2


START: dict[str, Any] = {"adapter_as": "start", "lora": LoraConfig(rank=8, alpha=3)}


def test_training_starts_from_it(folder: Path, adapter: Path, tmp_path: Path) -> None:
    policy, fused = policy_of(folder, adapter=str(adapter), **START), policy_of(folder, adapter=str(adapter))
    conditions = policy.encode(PROMPT, [picture(), picture(24, 16, 1)])
    begun = half_way(policy, conditions)
    assert difference(begun, half_way(fused, conditions)) < 1e-5
    assert difference(begun, half_way(policy_of(folder), conditions)) > 1e-2
    # The untuned model is the one that it began as, before and after a run that goes on.
    tune(policy)
    tuned = half_way(policy, conditions)
    assert difference(tuned, begun) > 1e-3
    with policy.reference():
        assert torch.equal(half_way(policy, conditions), begun)
    assert torch.equal(half_way(policy, conditions), tuned)
    policy.save(tmp_path)
    resumed = policy_of(folder, adapter=str(adapter), **START)
    resumed.load(tmp_path)
    assert torch.equal(half_way(resumed, conditions), tuned)
    with resumed.reference():
        assert torch.equal(half_way(resumed, conditions), begun)
    # What is saved stands alone.
    pipeline = stock(folder)
    pipeline.load_lora_weights(tmp_path)
    assert difference(euler(policy), stock_picture(pipeline, policy)) < 1e-4


def test_a_lora_that_starts_there_must_hold_it(folder: Path, adapter: Path) -> None:
    def start(**lora: Any) -> Callable[[], object]:
        return lambda: policy_of(folder, adapter=str(adapter), adapter_as="start", lora=LoraConfig(**lora))

    refused(start(rank=5), "policy.lora.rank: 5", "set it to 6")
    refused(start(rank=6, targets=["to_q"]), "policy.lora.targets", "attn.to_out.0")
    with pytest.raises(ValidationError, match=r"policy\.lora is null"):
        PolicyConfig(kind="uno", adapter="a.safetensors", adapter_as="start", lora=None)


def test_a_file_of_the_released_ones_keys_fits_flux_dev(tmp_path: Path) -> None:
    """At full width and depth, its rank of 512 cut to 1; the transformer by its published config."""
    published = json.loads((Path(customized_grpo.__file__).parent / "known_models.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(published["parts"]["flux.1-transformer"])
    weights = uno_lora(rank=1, width=3072, layers=19, singles=38)
    assert len(weights) == 19 * 8 + 38 * 4
    by_layer = uno_lora_by_layer(transformer, save(tmp_path / "dit_lora.safetensors", weights))
    moved = {
        name
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear)
        and (".attn." in name or (name.startswith("single") and name.endswith("proj_out")))
    }
    assert by_layer.keys() == moved and len(moved) == 19 * 8 + 38 * 4
    for name, (down, up) in by_layer.items():
        assert tuple((up @ down).shape) == tuple(transformer.get_submodule(name).weight.shape), name


def test_fusing_rounds_once(folder: Path, adapter: Path) -> None:
    exact = dict(policy_of(folder, lora=None, adapter=str(adapter)).trainable())
    plain = dict(policy_of(folder, lora=None, dtype="bfloat16").trainable())
    fused = dict(policy_of(folder, lora=None, dtype="bfloat16", adapter=str(adapter)).trainable())
    name = "single_transformer_blocks.0.proj_out.weight"
    weights = uno_lora()
    up, down = (weights[f"single_blocks.0.processor.proj_lora.{half}.weight"] for half in ("up", "down"))
    assert torch.equal(fused[name], (plain[name].float() + up @ down).to(torch.bfloat16))
    assert difference(fused[name].float(), exact[name]) < 0.05


def test_a_bad_adapter_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    transformer = stock(folder).transformer
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    good, key = uno_lora(), "single_blocks.1.processor.proj_lora.down.weight"

    def file(changes: dict[str, Tensor], without: str = "") -> Path:
        weights = {name: weight for name, weight in {**good, **changes}.items() if name != without}
        return save(tmp_path / "dit_lora.safetensors", weights)

    for name in (
        "single_blocks.1.processor.mlp_lora.down.weight",
        "double_blocks.1.processor.qkv_lora.down.weight",
        "single_blocks.1.processor.proj_lora.alpha",
        "transformer.single_blocks.1.processor.proj_lora.up.weight",
    ):
        refused(lambda name=name: fuse_uno_lora(transformer, file({name: torch.ones(6, 32)})), name, "no key of UNO")
    refused(lambda: fuse_uno_lora(transformer, file({}, key)), key, "lacks")
    refused(lambda: fuse_uno_lora(transformer, file({}, key.replace("down", "up"))), key, "lacks")
    refused(lambda: fuse_uno_lora(transformer, file({key: torch.ones(6, 32)})), key, "(rank, 160)")
    refused(lambda: fuse_uno_lora(transformer, file({key: torch.ones(5, 160)})), key, "(32, rank)")
    refused(lambda: fuse_uno_lora(transformer, file({key: torch.ones(6)})), key)
    deeper = save(tmp_path / "deeper.safetensors", uno_lora(layers=3))
    refused(lambda: fuse_uno_lora(transformer, deeper), "no double_blocks.2")
    wider = save(tmp_path / "wider.safetensors", uno_lora(width=48))
    refused(lambda: fuse_uno_lora(transformer, wider), "another model", "(rank, 32)")
    refused(lambda: fuse_uno_lora(transformer, save(tmp_path / "none.safetensors", {})), "no weights")
    (tmp_path / "text.safetensors").write_text("not a file of weights")
    refused(lambda: fuse_uno_lora(transformer, tmp_path / "text.safetensors"), "not a safetensors file")
    refused(lambda: policy_of(tmp_path / "nowhere", adapter=str(tmp_path / "nothing")), "adapter", "no such file")
    assert all(torch.equal(weight, before[name]) for name, weight in transformer.state_dict().items())


def test_an_adapter_belongs_to_uno() -> None:
    with pytest.raises(ValidationError, match=r"policy\.kind=uno, not to flux2"):
        PolicyConfig(kind="flux2", adapter="a.safetensors")
    overrides = ["policy.adapter=a.safetensors"]
    with pytest.raises(ValueError) as caught:
        load_config(None, overrides)
    assert "\n" not in str(caught.value) and "policy.adapter: belongs to policy.kind=uno" in str(caught.value)
    assert load_config(None, [*overrides, "policy.kind=uno"]).policy.adapter == "a.safetensors"


# What is trained


def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(folder: Path, tmp_path: Path) -> None:
    policy = policy_of(folder)
    tune(policy)
    policy.save(tmp_path)
    pipeline = stock(folder)
    untuned = stock_picture(pipeline, policy)
    pipeline.load_lora_weights(tmp_path)
    tuned = stock_picture(pipeline, policy)
    assert difference(euler(policy), tuned) < 1e-4
    assert difference(tuned, untuned) > 1e-2
    other = policy_of(folder)
    other.load(tmp_path)
    assert torch.equal(euler(other), euler(policy))


def test_only_the_lora_is_trainable_and_gets_gradients(folder: Path, adapter: Path) -> None:
    policy = policy_of(folder, adapter=str(adapter))
    tune(policy)
    named = policy.trainable()
    assert named and all(".lora_" in name and p.requires_grad for name, p in named.items())
    assert not any(name.startswith("proj_out") for name in named)
    policy.velocity(noise(policy), torch.tensor([0.5]), policy.encode(PROMPT, [picture()])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in named.values())


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    proofs.checkpointing_changes_no_gradient(
        lambda checkpointing: policy_of(folder, gradient_checkpointing=checkpointing),
        lambda policy: policy.encode(PROMPT, [picture()]),
    )


@proofs.lora_and_full
def test_reference_is_the_untuned_model(folder: Path, adapter: Path, lora: LoraConfig | None) -> None:
    policy = policy_of(folder, adapter=str(adapter), lora=lora)
    proofs.reference_is_untuned(policy, policy.encode(PROMPT, [picture(), picture(24, 16, 1)]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@proofs.lora_and_full
def test_loading_gives_back_every_bit(folder: Path, tmp_path: Path, lora: LoraConfig | None, dtype: str) -> None:
    policy, other = (policy_of(folder, lora=lora, dtype=dtype) for _ in range(2))
    proofs.loading_gives_back_every_bit(policy, other, tmp_path)
