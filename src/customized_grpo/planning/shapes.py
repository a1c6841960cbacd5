"""Counts and activations of a configured policy, from its outline on torch's meta device.

Activations are a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from customized_grpo.config import ConfigError, PolicyConfig
from customized_grpo.planning.measure import peak_bytes
from customized_grpo.planning.memory import Activations, Model
from customized_grpo.policies import build_policy
from customized_grpo.policies.checkpointing import checkpointing
from customized_grpo.policies.pipelines import NEGATIVE, REFERENCE, PipelinePolicy
from customized_grpo.protocols import Conditions

# What of a policy's settings has no part in its outline.
_IRRELEVANT = {"offload": False, "conditions": None, "quantise": None, "quantise_text_encoders": None, "compile": False}
_LONGEST_LIST = 3  # blocks of a kind that are enough to see what each more takes


@dataclass(frozen=True)
class Shapes:
    """What of a policy memory depends on, for pairs with one reference of `reference` (height, width) pixels."""

    transformer: Model
    text_encoders: dict[str, Model]
    vae: Model
    trained: int
    trained_tensors: int
    trained_bytes: int
    largest_linear: int
    latent: int
    condition: int
    pixels: int
    activations: Activations


def shapes_of(config: PolicyConfig, references: int) -> Shapes:
    """The shapes of a policy, for pairs of so many references.

    Raises:
        ConfigError, ModelError: a policy of the user's own, which has no outline, or a model that cannot be outlined.
    """
    if ":" in config.kind:
        raise ConfigError(f"policy.kind: {config.kind} is a class of your own, which has no plan; plan a built-in kind")
    known = {name: value for name, value in _IRRELEVANT.items() if name in type(config).model_fields}
    return _shapes(config.model_copy(update={**known, "device": "meta"}).model_dump_json(), references)


@lru_cache(maxsize=32)
def _shapes(config_json: str, references: int) -> Shapes:
    config = PolicyConfig.model_validate_json(config_json)
    policy = build_policy(config)
    assert isinstance(policy, PipelinePolicy)
    pipeline, transformer = policy._pipeline, policy._transformer
    trained = list(policy.trainable().values())
    whole = count(transformer)
    own = 0 if config.lora is None else sum(weight.numel() for weight in trained)
    adapted = [m for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n]
    conditions = _conditions(policy, references)
    latents = torch.empty(1, *policy.latent_shape, device="meta")
    sigma = torch.empty(1, device="meta")
    for weight in trained:
        weight.grad = torch.empty_like(weight)

    def forward() -> None:
        with torch.no_grad():
            policy.velocity(latents, sigma, conditions)

    def training() -> None:
        torch.autograd.backward(policy.velocity(latents, sigma, conditions).square().mean())

    encode, decode = _vae_activations(pipeline.vae, config)
    drawing, tuning = (of_all_blocks(transformer, partial(peak_bytes, work)) for work in (forward, training))
    waiting = 0
    if config.offload_activations:
        transformer.enable_gradient_checkpointing(checkpointing(policy.device, on_host=False))
        waiting = of_all_blocks(transformer, partial(peak_bytes, training)) - tuning
    return Shapes(
        Model(whole.parameters - own, sum(m.weight.numel() for m in adapted), sum(m.out_features for m in adapted)),
        {name: count(getattr(pipeline, name)) for name in policy._placement.encoders},
        count(pipeline.vae),
        sum(weight.numel() for weight in trained),
        len(trained),
        sum(weight.numel() * weight.element_size() for weight in trained),
        max(module.weight.numel() for module in adapted),
        latents.numel(),
        sum(row.numel() * row.element_size() for row in conditions.rows.values()),
        config.height * config.width,
        Activations(drawing, tuning, encode, decode, 0, waiting),
    )


def count(model: nn.Module) -> Model:
    """The parameters of a model, tied ones once."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = {id(module.weight): module.weight.numel() for module in linear}
    rows = sum(module.out_features for module in linear)
    return Model(sum(weight.numel() for weight in model.parameters()), sum(weights.values()), rows)


def _conditions(policy: PipelinePolicy, references: int) -> Conditions:
    """Conditions of one pair whose prompt has as many tokens as are read, on meta."""
    config, shape = policy._config, policy._transformer.config
    dtype = getattr(torch, config.dtype)
    rows: dict[str, Tensor] = {
        "prompt_embeds": torch.empty(
            1, config.max_sequence_length, shape.joint_attention_dim, dtype=dtype, device="meta"
        )
    }
    if "pooled_projection_dim" in shape:
        rows["pooled"] = torch.empty(1, shape.pooled_projection_dim, dtype=dtype, device="meta")
    if config.true_cfg != 1:
        rows |= {f"{NEGATIVE}{name}": torch.empty_like(row) for name, row in rows.items()}
    height, width = (config.reference_sizes or [(1024, 1024)])[0]
    picture = Image.new("RGB", (width, height))
    with torch.no_grad():
        for k in range(1, references + 1):
            rows[REFERENCE.format(k)] = policy.encode_reference(picture, references)
    return Conditions(rows)


def _vae_activations(vae: Any, config: PolicyConfig) -> tuple[int, int]:
    """Bytes that encoding and decoding one picture of the configured size take."""
    frames = (1,) if hasattr(vae, "temperal_downsample") else ()  # a VAE of videos
    pixels = torch.empty(1, 3, *frames, config.height, config.width, dtype=vae.dtype, device="meta")
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        return peak_bytes(lambda: vae.encode(pixels)), peak_bytes(lambda: vae.decode(latents))


def of_all_blocks(transformer: nn.Module, count: Callable[[], int]) -> int:
    """The result of `count` for the whole transformer, extrapolated from few blocks: each more of a kind adds as much.

    Args:
        transformer: a diffusers model; it has fewer blocks while `count` is called.
        count: computes with the transformer, and counts something that grows with its blocks by equal amounts.
    """
    lists = {name: part for name, part in transformer.named_children() if isinstance(part, nn.ModuleList)}
    few = {name: min(len(blocks), _LONGEST_LIST - 1) for name, blocks in lists.items()}
    with _cut(transformer, few):
        total = base = count()
    for name, blocks in lists.items():
        if len(blocks) > few[name]:
            with _cut(transformer, {**few, name: few[name] + 1}):
                total += (len(blocks) - few[name]) * (count() - base)
    return total


@contextmanager
def _cut(transformer: nn.Module, counts: dict[str, int]) -> Iterator[None]:
    """Inside it the transformer has only so many blocks of each list: its first ones and its last, which may differ."""
    whole: dict[str, Any] = {name: getattr(transformer, name) for name in counts}
    try:
        for name, blocks in whole.items():
            few = [*blocks[: counts[name] - 1], blocks[-1]] if counts[name] else []
            setattr(transformer, name, nn.ModuleList(few))
        yield
    finally:
        for name, blocks in whole.items():
            setattr(transformer, name, blocks)
