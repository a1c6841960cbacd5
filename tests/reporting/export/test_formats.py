"""A LoRA under other loaders' key names changes every layer as before, by diffusers' own readers of those names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxKontextPipeline, QwenImageEditPlusPipeline
from torch import Tensor

from customized_grpo.config import ConfigError
from customized_grpo.reporting.formats import Format, convert

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
ATTENTION_LAYERS = {f"transformer_blocks.1.attn.{name}": 1 for name in ATTENTION}
#: Outputs per input of the layers of one block of each kind, as many as policies adapt.
LAYERS: dict[str, dict[str, int]] = {
    "flux-kontext": {
        **ATTENTION_LAYERS,
        **{f"transformer_blocks.1.{part}.net.0.proj": 4 for part in ("ff", "ff_context")},
        **{f"single_transformer_blocks.2.attn.{name}": 1 for name in ATTENTION[:3]},
        "single_transformer_blocks.2.proj_mlp": 4,
        "single_transformer_blocks.2.proj_out": 1,
    },
    "flux2": {
        **ATTENTION_LAYERS,
        **{f"transformer_blocks.1.{part}.linear_in": 6 for part in ("ff", "ff_context")},
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj": 9,
        "single_transformer_blocks.0.attn.to_out": 1,
    },
    "qwen-image-edit": {**ATTENTION_LAYERS, "transformer_blocks.1.img_mlp.net.0.proj": 4},
}
PIPELINES = {
    "flux-kontext": FluxKontextPipeline,
    "flux2": Flux2KleinPipeline,
    "qwen-image-edit": QwenImageEditPlusPipeline,
}
RANK, ALPHA = 2, 5.0


def lora(kind: str, width: int) -> dict[str, Tensor]:
    made = {}
    generator = torch.Generator().manual_seed(0)
    for name, outputs in LAYERS[kind].items():
        made[f"transformer.{name}.lora_A.weight"] = torch.randn(RANK, width, generator=generator)
        made[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs * width, RANK, generator=generator)
    return made


def change(weights: dict[str, Tensor], layer: str, scale: float = 1.0) -> Tensor:
    """Rows and columns of the change that a LoRA makes to a layer."""
    down, up = (weights[f"{layer}.lora_{half}.weight"] for half in "AB")
    return (up[::97] @ down[:, ::97]) * scale


@pytest.mark.parametrize(
    ("kind", "form"),
    [("flux-kontext", "kohya"), ("flux2", "kohya"), ("flux2", "comfyui"), ("qwen-image-edit", "comfyui")],
)
def test_diffusers_reads_the_same_changes_from_other_names(kind: str, form: Format) -> None:
    weights = lora(kind, 3072 if kind == "flux-kontext" else 32)
    converted = convert(weights, ALPHA, kind, form)
    read: Any = PIPELINES[kind].lora_state_dict(dict(converted))
    assert {name for name in read if name.endswith(".weight")} == set(weights)
    for name in LAYERS[kind]:
        own, other = change(weights, f"transformer.{name}", ALPHA / RANK), change(read, f"transformer.{name}")
        torch.testing.assert_close(other, own, rtol=1e-5, atol=1e-5)


def test_comfyuis_names_are_those_of_the_original_flux() -> None:
    """ComfyUI maps diffusion_model.LAYER to a layer of that name; without an alpha its scale is 1."""
    weights = lora("flux-kontext", 8)
    converted = convert(weights, ALPHA, "flux-kontext", "comfyui")
    double = r"double_blocks\.1\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])"
    layer = rf"diffusion_model\.({double}|single_blocks\.2\.linear[12])\.lora_[AB]\.weight"
    assert all(re.fullmatch(layer, name) for name in converted)
    parts = [
        f"transformer.single_transformer_blocks.2.{name}"
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    whole = torch.cat([weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"] for name in parts])
    down, up = (converted[f"diffusion_model.single_blocks.2.linear1.lora_{half}.weight"] for half in "AB")
    torch.testing.assert_close(up @ down, whole * ALPHA / RANK)


def test_layers_without_a_lora_are_not_changed() -> None:
    weights = {name: weight for name, weight in lora("flux-kontext", 8).items() if ".to_k." in name}
    converted = convert(weights, ALPHA, "uno", "comfyui")
    down, up = (converted[f"diffusion_model.single_blocks.2.linear1.lora_{half}.weight"] for half in "AB")
    changed = (up @ down).abs().sum(1) > 0
    assert len(changed) == 7 * 8 and changed.nonzero().flatten().tolist() == list(range(8, 16))


def test_a_model_or_layer_without_names_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--format kohya: .* policy\.kind=qwen-image-edit"):
        convert(lora("qwen-image-edit", 8), ALPHA, "qwen-image-edit", "kohya")
    odd = {f"transformer.x_embedder.lora_{half}.weight": torch.zeros(2, 2) for half in "AB"}
    with pytest.raises(ConfigError, match="no name for the layer x_embedder; use diffusers"):
        convert(odd, ALPHA, "flux2", "kohya")
