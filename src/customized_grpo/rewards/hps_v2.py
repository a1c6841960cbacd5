"""Conversion of the published weights of HPS v2 and v2.1, an open_clip ViT-H/14 in a .pt file, for the kind hps-v2.

This is the only place that reads a pickle, and only when a user asks for it: `torch.load` with `weights_only=True`
builds tensors and plain containers and refuses every other object. Rewards load the safetensors that are written here.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.loading import load_tokenizer
from customized_grpo.utils.named import error_text

_BOTH = {"num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 1024}
#: Configuration of ViT-H/14, where it differs from that of CLIP's ViT-B/32.
CONFIG: dict[str, Any] = {
    "text_config": {**_BOTH, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
    "vision_config": {
        **_BOTH,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "patch_size": 14,
    },
    "projection_dim": 1024,
}
_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+[._])(weight|bias)")
#: Names within a layer, and outside of layers, in open_clip and in transformers.
_INNER = {
    "attn.out_proj.": "self_attn.out_proj",
    "ln_1.": "layer_norm1",
    "ln_2.": "layer_norm2",
    "mlp.c_fc.": "mlp.fc1",
    "mlp.c_proj.": "mlp.fc2",
}
_OUTER = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' own spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = ("text_projection", "visual.proj")
#: The authors' preprocessing: the longer side becomes 224 pixels, and black borders make a square.
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def convert_hps_v2(file: Path, out: Path, tokenizer: str) -> None:
    """Write a CLIPModel of transformers with tokenizer and preprocessing, as the kind hps-v2 loads it.

    Args:
        file: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt of xswu/HPSv2.
        out: New or empty folder.
        tokenizer: Hub id or folder of the tokenizer.

    Raises:
        RewardError: The file is not there, is damaged, holds anything but tensors, or the weights of another model; or
            the tokenizer cannot be loaded.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RewardError(f"{out}: is not an empty folder; name a new one")
    weights = _read(file)
    try:
        renamed = dict(entry for name, value in weights.items() for entry in _renamed(name, value))
    except (KeyError, ValueError) as error:
        raise _unlike(file, error_text(error)) from error
    config = CLIPConfig(**CONFIG)
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    for name in expected.keys() | renamed.keys():
        shapes = [tuple(one[name].shape) if name in one else None for one in (expected, renamed)]
        if shapes[0] != shapes[1]:
            raise _unlike(file, f"{name} has shape {shapes[1]} instead of {shapes[0]}")
    words = load_tokenizer(tokenizer, "main", "hps-v2", config.text_config.vocab_size)
    config.text_config.eos_token_id = words.eos_token_id  # where the text's features are read
    out.mkdir(parents=True, exist_ok=True)
    config.architectures = ["CLIPModel"]
    config.save_pretrained(out)
    words.save_pretrained(out)
    side = config.vision_config.image_size
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"longest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "resample": 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    save_file(renamed, out / "model.safetensors", {"format": "pt"})  # last: without it the folder cannot be loaded


def _read(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RewardError(f"{file}: no such file; download HPS_v2.1_compressed.pt of xswu/HPSv2") from error
    except Exception as error:  # of torch, the archive and the unpickler, which are many
        raise RewardError(
            f"{file}: holds more than tensors, which is never loaded, or is damaged ({type(error).__name__}); download "
            "HPS_v2.1_compressed.pt of xswu/HPSv2 again"
        ) from error
    weights = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise _unlike(file, "it has no weights by name")
    return weights


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Return a weight of open_clip under its names of transformers."""
    if (found := _LAYER.fullmatch(name)) is None:
        return [(_OUTER[name], (value.T if name in _TRANSPOSED else value).contiguous())]
    visual, number, inner, kind = found.groups()
    place = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    if inner == "attn.in_proj_":
        parts = value.chunk(3)
        return [(f"{place}.self_attn.{one}_proj.{kind}", part.clone()) for one, part in zip("qkv", parts, strict=True)]
    return [(f"{place}.{_INNER[inner]}.{kind}", value.contiguous())]


def _unlike(file: Path, reason: str) -> RewardError:
    return RewardError(f"{file}: is not HPS v2 ({reason}); download HPS_v2.1_compressed.pt of xswu/HPSv2")
