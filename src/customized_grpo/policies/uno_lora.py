"""UNO's released LoRA, a file of BFL's layout, on the layers of diffusers' `FluxTransformer2DModel`.

Its keys are {double,single}_blocks.I.processor.PART.{down,up}.weight; PART is qkv_lora1, proj_lora1 (picture),
qkv_lora2, proj_lora2 (text), or in single blocks qkv_lora, proj_lora. It adds up @ down to a layer's
weights: there is no alpha. A file may leave out blocks or parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from customized_grpo.utils.hub import ModelError, first_line, local_path

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


@dataclass(frozen=True)
class _Term:
    """One low-rank term of the file; `up` has the rows of `layers`, one layer after the other."""

    layers: list[tuple[str, Any]]
    down: Tensor
    up: Tensor

    @property
    def rows(self) -> list[int]:
        return [layer.out_features for _, layer in self.layers]


def fuse_uno_lora(transformer: Any, path: str | Path) -> None:
    """Add UNO's LoRA to the weights of a `FluxTransformer2DModel`.

    Products are taken in float32 on the CPU, and sums in float32 before they are rounded to the weights' precision, so
    that the result has the same bits on each device. A LoRA on the transformer (peft) stays as it is: its base changes.

    Args:
        transformer: the model, changed in place.
        path: the file.

    Raises:
        ModelError: no such file, another key, or a shape that does not fit; nothing is changed then.
    """
    terms = _terms(transformer, path)
    with torch.no_grad():
        for term in terms:
            change = term.up.float() @ term.down.float()
            for (_, layer), part in zip(term.layers, change.split_with_sizes(term.rows), strict=True):
                weight = layer.weight
                weight.copy_(weight.float() + part.to(weight.device))


def uno_lora_by_layer(transformer: Any, path: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """UNO's LoRA as (down (rank, inputs), up (outputs, rank)) of each layer that it moves, by the layer's name.

    Layers that share a term share its `down`. Raises ModelError as `fuse_uno_lora` does.
    """
    return {
        name: (term.down, up)
        for term in _terms(transformer, path)
        for (name, _), up in zip(term.layers, term.up.split_with_sizes(term.rows), strict=True)
    }


def adapter_file(path: str | Path) -> Path:
    """The adapter's path. Raises ModelError where no file is there."""
    path = local_path(path)
    if not path.is_file():
        raise ModelError(f"policy.adapter: {path}: no such file; give UNO's dit_lora.safetensors")
    return path


def _terms(transformer: Any, path: str | Path) -> list[_Term]:
    path = adapter_file(path)
    return [_fitting(transformer, path, *found) for found in _pairs(path)]


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
        if not saved[key].isfinite().all():
            raise ModelError(f"policy.adapter: {path}: {key} holds values that are not finite; download it again")
        if match[4] == "down":
            pairs.append((match, saved[key], saved[other]))
    return pairs


def _fitting(transformer: Any, path: Path, match: re.Match[str], down: Tensor, up: Tensor) -> _Term:
    """A low-rank term with the layers that it belongs to. Raises ModelError where they do not fit."""
    blocks, parts = _LAYERS[match[1]]
    place = f"{blocks}.{int(match[2])}"
    try:
        block = transformer.get_submodule(place)
    except AttributeError:
        raise ModelError(
            f"policy.adapter: {path}: belongs to another model, policy.path has no {match[1]}.{match[2]}; check both"
        ) from None
    found = {f"{place}.{name}": block.get_submodule(name) for name in parts[match[3]]}
    # Beneath a LoRA of peft's, where there is one.
    layers = [(name, getattr(layer, "base_layer", layer)) for name, layer in found.items()]
    term = _Term(layers, down, up)
    inputs, outputs = layers[0][1].in_features, sum(term.rows)
    if down.ndim != 2 or down.shape[1] != inputs or up.shape != (outputs, len(down)):
        raise ModelError(
            f"policy.adapter: {path}: belongs to another model, {match[0]} is {tuple(down.shape)} and its up.weight "
            f"{tuple(up.shape)}, not (rank, {inputs}) and ({outputs}, rank); check policy.path"
        )
    return term
