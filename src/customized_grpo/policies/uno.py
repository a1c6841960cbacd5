"""UNO (arXiv 2504.02160) as a policy: FLUX.1 with its references as further tokens, of diffusers' own parts.

Without references a deterministic Euler rollout of it is what `FluxPipeline` draws, and what it saves is what that
pipeline loads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.models import ModelError, first_line, local_path
from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.pipelines import PATCH, Grid, nearest_size

#: The longer side of a reference in pixels, in UNO's own inference: where it is the only one, and where not.
ALONE, SEVERAL = 512, 320

_KEY = re.compile(r"(double_blocks|single_blocks)\.(\d+)\.processor\.(\w+)\.(down|up)\.weight")
# By UNO's names of blocks and of their parts: diffusers' blocks, and the layers whose outputs, one after the other,
# are the part's. Those of a single block's proj_lora take attention and MLP in one row, as proj_out does.
_LAYERS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "double_blocks": (
        "transformer_blocks",
        {
            "qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "proj_lora1": ("attn.to_out.0",),
            "qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "proj_lora2": ("attn.to_add_out",),
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {"qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"), "proj_lora": ("proj_out",)},
    ),
}


class UnoPolicy(FluxPolicy):
    """The transformer of a `FluxPipeline`, with UNO's LoRA fused into it, as a `protocols.Policy`.

    `config.adapter` is UNO's dit_lora.safetensors, see `fuse_uno_lora`; null leaves the pipeline's own transformer,
    which then should be one that has learnt to look at references. The LoRA that training moves is another, on top:
    what `save` writes belongs with that file, and the stock pipeline draws what the policy does (without references)
    where `load_lora_weights` has read both and `set_adapters` weighs both with 1.

    References are resized to the nearest in shape of `config.reference_sizes`. Where that is null they go UNO's own
    way: their longer side becomes 512 pixels, or 320 where they are several, and they are cropped about the centre to
    whole tokens. Their position ids are UNO's, see `position_ids`.

    Two things differ from UNO's code. A reference's latents are the mean of what the VAE says, where UNO draws a
    sample: conditions are to be the same in each run. The noise levels' shift is that of `FluxPipeline`, by the number
    of the picture's tokens, where UNO's code takes 1/64 of that number: at 512 x 512 `rollout.shift` 1.583 instead of
    null gives UNO's levels, exp(0.5 + (16 - 256) * 0.65 / 3840).

    Prompts longer than `config.max_sequence_length` tokens (UNO: 512) are cut; references may be none.

    `Conditions.rows` holds prompt_embeds (B, T, D), pooled (B, P), and for each reference its tokens on their grid,
    (B, rows, columns, channels), so that conditions of equal signature have equal position ids.

    Args:
        config: model, adapter, size, precision and what to tune.

    Raises:
        ModelError: the path holds no FluxPipeline in safetensors, the adapter is missing or not UNO's or of another
            size, the picture's size is less than one token, or LoRA targets do not exist.
    """

    def __init__(self, config: PolicyConfig) -> None:
        adapter = None if config.device == "meta" else config.adapter  # what has no numbers takes none
        if adapter is not None:
            _file(adapter)  # before the large model is loaded
        super().__init__(config, FluxPipeline)
        if adapter is not None:
            fuse_uno_lora(self._transformer, adapter)

    def _load_transformer(self) -> nn.Module:
        model = super()._load_transformer()
        if self._config.adapter is not None:
            fuse_uno_lora(model, self._config.adapter)
        return model

    def _encode_reference(self, picture: Image.Image, count: int) -> Tensor:
        processor, multiple = self._pipeline.image_processor, self._pipeline.vae_scale_factor * PATCH
        sizes = self._config.reference_sizes
        if sizes is None:
            picture = self._crop(picture, ALONE if count == 1 else SEVERAL)
        else:
            rows, columns = self._tokens_of(
                "policy.reference_sizes", *nearest_size(picture.height, picture.width, sizes)
            )
            picture = processor.resize(picture, rows * multiple, columns * multiple)
        vae = self._pipeline.vae
        pixels = processor.preprocess(picture, picture.height, picture.width).to(self._device, vae.dtype)
        latents = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        packed: Tensor = self._pipeline._pack_latents(latents, 1, *latents.shape[1:])
        return packed.to(self._dtype).reshape(1, picture.height // multiple, picture.width // multiple, -1)

    def _crop(self, picture: Image.Image, longer: int) -> Image.Image:
        """The picture with that longer side, then cropped about its centre to whole tokens."""
        scale = longer / max(picture.size)
        # Floored as in UNO's code; but not the longer side, which the quotient's error could make a pixel less.
        width, height = (longer if side == max(picture.size) else int(scale * side) for side in picture.size)
        rows, columns = self._tokens_of("policy.reference_sizes is null, so a reference", height, width)
        multiple = self._pipeline.vae_scale_factor * PATCH
        left, top = (width - columns * multiple) // 2, (height - rows * multiple) // 2
        resized = picture.resize((width, height), Image.Resampling.LANCZOS)
        return resized.crop((left, top, left + columns * multiple, top + rows * multiple))

    def _position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        return position_ids(grids)


def position_ids(grids: Sequence[Grid]) -> Tensor:
    """UNO's position ids, float32 (tokens, 3), of a picture's grid of tokens and its references' ("pe='d'").

    The grids stand on one diagonal: rows and columns of each begin where those of the one before it end. The first
    coordinate is 0 for all.
    """
    row = column = 0
    parts = []
    for rows, columns in grids:
        ids = torch.zeros(rows, columns, 3)
        ids[..., 1] = torch.arange(row, row + rows)[:, None]
        ids[..., 2] = torch.arange(column, column + columns)
        parts.append(ids.flatten(0, 1))
        row, column = row + rows, column + columns
    return torch.cat(parts)


def fuse_uno_lora(transformer: Any, path: str | Path) -> None:
    """Add UNO's LoRA to the weights of a `FluxTransformer2DModel`: W + up @ down, there being no alpha.

    Products are taken in float32 on the CPU, and sums in float32 before they are rounded to the weights' precision, so
    that the result has the same bits on each device. A LoRA on the transformer (peft) stays as it is: its base changes.
    A file may leave out blocks or parts.

    Args:
        transformer: the model, changed in place.
        path: a safetensors file with UNO's keys, {double,single}_blocks.I.processor.PART.{down,up}.weight; PART is
            qkv_lora1, proj_lora1 (picture), qkv_lora2, proj_lora2 (text), or in single blocks qkv_lora, proj_lora.

    Raises:
        ModelError: no such file, another key, or a shape that does not fit; nothing is changed then.
    """
    path = _file(path)
    updates = [_update(transformer, path, *found) for found in _pairs(path)]
    with torch.no_grad():
        for layers, down, up in updates:
            change = up.float() @ down.float()
            sizes = [layer.out_features for layer in layers]
            for layer, part in zip(layers, change.split_with_sizes(sizes), strict=True):
                weight = layer.weight
                weight.copy_(weight.float() + part.to(weight.device))


def _file(path: str | Path) -> Path:
    """The adapter's path. Raises ModelError where no file is there."""
    path = local_path(path)
    if not path.is_file():
        raise ModelError(f"policy.adapter: {path}: no such file; give UNO's dit_lora.safetensors")
    return path


def _pairs(path: Path) -> list[tuple[re.Match[str], Tensor, Tensor]]:
    """Each low-rank term of the file: its key, taken apart, its down and its up weight, on the CPU."""
    try:
        saved = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"policy.adapter: {path}: not a safetensors file ({first_line(error)}); download it again"
        ) from error
    if not saved:
        raise ModelError(f"policy.adapter: {path}: holds no weights; give UNO's dit_lora.safetensors")
    pairs = []
    for key in sorted(saved):
        match = _KEY.fullmatch(key)
        if match is None or match[3] not in _LAYERS[match[1]][1]:
            raise ModelError(f"policy.adapter: {path}: {key} is no key of UNO's LoRA; give its dit_lora.safetensors")
        other = f"{key.removesuffix(f'{match[4]}.weight')}{'up' if match[4] == 'down' else 'down'}.weight"
        if other not in saved:
            raise ModelError(f"policy.adapter: {path}: has {key} but lacks {other}; download it again")
        if match[4] == "down":
            pairs.append((match, saved[key], saved[other]))
    return pairs


def _update(
    transformer: Any, path: Path, match: re.Match[str], down: Tensor, up: Tensor
) -> tuple[list[Any], Tensor, Tensor]:
    """The layers that a low-rank term belongs to, and the term. Raises ModelError where they do not fit."""
    blocks, parts = _LAYERS[match[1]]
    try:
        block = transformer.get_submodule(f"{blocks}.{int(match[2])}")
    except AttributeError:
        raise ModelError(
            f"policy.adapter: {path}: belongs to another model, policy.path has no {match[1]}.{match[2]}; check both"
        ) from None
    found = [block.get_submodule(name) for name in parts[match[3]]]
    layers: list[Any] = [getattr(layer, "base_layer", layer) for layer in found]  # beneath a LoRA of peft's
    inputs, outputs = layers[0].in_features, sum(layer.out_features for layer in layers)
    if down.ndim != 2 or down.shape[1] != inputs or up.shape != (outputs, len(down)):
        raise ModelError(
            f"policy.adapter: {path}: belongs to another model, {match[0]} is {tuple(down.shape)} and its up.weight "
            f"{tuple(up.shape)}, not (rank, {inputs}) and ({outputs}, rank); check policy.path"
        )
    return layers, down, up
