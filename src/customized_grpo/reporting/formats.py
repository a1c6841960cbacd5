"""A LoRA's weights by the key names of other loaders: ComfyUI, and kohya's sd-scripts.

Both name the layers of the FLUX models as Black Forest Labs' own code does, where q, k and v (and the MLP of a single
block of FLUX.1) are one layer. Keys that a loader matches, by its source:

- comfyui, the generic format of comfy/lora.py: diffusion_model.LAYER.lora_{A,B}.weight
- kohya, networks/lora_flux.py: lora_unet_LAYER.lora_{down,up}.weight and .alpha, with "_" for "." in LAYER

Qwen-Image's layers have the same names in ComfyUI and diffusers.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from customized_grpo.config import ConfigError

Format = Literal["diffusers", "comfyui", "kohya"]
_PREFIX, _DOWN, _UP = "transformer.", ".lora_A.weight", ".lora_B.weight"
_QKV = "attn.to_q", "attn.to_k", "attn.to_v"
_ADDED_QKV = "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"
#: Down and up projection of a layer's LoRA.
_Halves = tuple[Tensor, Tensor]
#: diffusers' layers by a layer of the original code, in the order in which they are one.
_Parts = dict[str, tuple[str, ...]]
_DOUBLE: _Parts = {
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED_QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
}
#: Further layers of double and single blocks: of FLUX.1, and of FLUX.2.
_FLUX: tuple[_Parts, _Parts] = (
    {"img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",), "txt_mlp.0": ("ff_context.net.0.proj",),
     "txt_mlp.2": ("ff_context.net.2",), "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)},
    {"linear1": (*_QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)},
)  # fmt: skip
_FLUX2: tuple[_Parts, _Parts] = (
    {"img_mlp.0": ("ff.linear_in",), "img_mlp.2": ("ff.linear_out",), "txt_mlp.0": ("ff_context.linear_in",),
     "txt_mlp.2": ("ff_context.linear_out",)},
    {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
)  # fmt: skip
_KINDS = {"flux-kontext": _FLUX, "uno": _FLUX, "flux2": _FLUX2}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_MLP_RATIO = 4  # outputs of proj_mlp per input


def convert(weights: Mapping[str, Tensor], alpha: float, kind: str, form: Format) -> dict[str, Tensor]:
    """Return a LoRA in diffusers' keys by the keys of another loader; the change of every layer stays the same.

    The scale `alpha` / rank is multiplied into the weights, so that no loader can miss it. Raises ConfigError if the
    loader has no names for this model or for one of the layers.
    """
    if form == "diffusers":
        return dict(weights)
    layers: dict[str, _Halves] = {}
    for name, down in weights.items():
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            layers[layer.removeprefix(_PREFIX)] = down, weights[layer + _UP] * alpha / len(down)
    if kind in _KINDS:
        layers = _merged(layers, *_KINDS[kind])
    elif not (kind == "qwen-image-edit" and form == "comfyui"):
        raise ConfigError(f"--format {form}: there are no such names for policy.kind={kind}; use diffusers")
    found: dict[str, Tensor] = {}
    for name, (down, up) in layers.items():
        if form == "comfyui":
            halves = {f"diffusion_model.{name}{_DOWN}": down, f"diffusion_model.{name}{_UP}": up}
        else:
            flat = f"lora_unet_{name.replace('.', '_')}"
            halves = {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
            halves[f"{flat}.alpha"] = torch.tensor(float(len(down)))
        found |= {key: value.contiguous() for key, value in halves.items()}
    return found


def _merged(layers: Mapping[str, _Halves], double: _Parts, single: _Parts) -> dict[str, _Halves]:
    """Return (down, up) by the layers of the original code, whose parts are blocks of one LoRA of a higher rank."""
    places = {
        (kind, part): (f"{block}_blocks", name, parts)
        for kind, block, names in (("", "double", _DOUBLE | double), ("single_", "single", single))
        for name, parts in names.items()
        for part in parts
    }
    found: dict[str, _Halves] = {}
    for layer in layers:
        match = _BLOCK.fullmatch(layer)
        place = places.get((match[1] or "", match[3])) if match else None
        if match is None or place is None:
            raise ConfigError(f"--format: there is no name for the layer {layer}; use diffusers")
        blocks, name, parts = place
        before = layer.removesuffix(match[3])
        if (merged := f"{blocks}.{match[2]}.{name}") not in found:
            found[merged] = _joined([layers.get(before + part) for part in parts], parts)
    return found


def _joined(halves: list[_Halves | None], parts: tuple[str, ...]) -> _Halves:
    """Return one LoRA of several layers with the same input; parts without a LoRA are zeros."""
    first, second = next(one for one in halves if one is not None)
    rank, inputs = first.shape
    whole: list[_Halves] = []
    for one, part in zip(halves, parts, strict=True):
        outputs = inputs * (_MLP_RATIO if part == "proj_mlp" else 1)
        whole.append(one or (first.new_zeros(rank, inputs), second.new_zeros(outputs, rank)))
    up: Tensor = torch.block_diag(*(up for _, up in whole))
    return torch.cat([down for down, _ in whole]), up
