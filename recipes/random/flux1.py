"""A FluxKontextPipeline of random weights, its transformer and VAE as large as FLUX.1's: to measure with, without a hub.

    python recipes/random/flux1.py models/random-flux1

writes 24 GB in bfloat16, and needs as much memory. Text encoders have one layer, of FLUX.1's widths; tokenizers are the
embedded model's. With --tiny all is small, to try it out. What it draws is noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

import customized_grpo
from customized_grpo.utils.hub import resolve

_PARTS = json.loads(
    (Path(customized_grpo.__file__).parent / "utils" / "known_models.json").read_text(encoding="utf-8")
)["parts"]
_TINY_TRANSFORMER = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 64}
_TINY_VAE = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
_LARGEST_FILE = "5GB"


def transformer(config: dict[str, Any], seed: int, device: torch.device) -> FluxTransformer2DModel:
    """In bfloat16; matrices keep the scale of what they are given, so that no activation overflows."""
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    draws = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, weight.shape[1] ** -0.5, generator=draws)
            else:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def pipeline(*, tiny: bool, seed: int = 0, device: torch.device | str = "cpu") -> FluxKontextPipeline:
    """The pipeline with random weights, made on `device`."""
    torch.manual_seed(seed)
    device = torch.device(device)
    embedded = resolve("embedded/pipeline")
    clip, t5 = (
        kind.from_pretrained(embedded, subfolder=name)
        for kind, name in ((CLIPTokenizer, "tokenizer"), (T5TokenizerFast, "tokenizer_2"))
    )
    config = {**_PARTS["flux.1-transformer"], **(_TINY_TRANSFORMER if tiny else {})}
    words = T5Config(
        vocab_size=len(t5), d_model=config["joint_attention_dim"], d_kv=64, d_ff=64 if tiny else 10240,
        num_layers=1, num_heads=1 if tiny else 64, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    line = CLIPTextConfig(
        vocab_size=len(clip), hidden_size=config["pooled_projection_dim"], intermediate_size=64 if tiny else 3072,
        num_hidden_layers=1, num_attention_heads=12, max_position_embeddings=clip.model_max_length,
        bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
    )  # fmt: skip
    with device:
        parts: dict[str, nn.Module] = {
            "vae": AutoencoderKL.from_config({**_PARTS["flux.1-vae"], **(_TINY_VAE if tiny else {})}),
            "text_encoder": CLIPTextModel(line),
            "text_encoder_2": T5EncoderModel(words),
        }
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(_PARTS["flux.1-scheduler"]),
        tokenizer=clip,
        tokenizer_2=t5,
        transformer=transformer(config, seed, device),
        **{name: nn.Module.to(part, torch.bfloat16) for name, part in parts.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    made = pipeline(tiny=arguments.tiny)
    made.save_pretrained(arguments.folder, safe_serialization=True, max_shard_size=_LARGEST_FILE)
    print(
        f"{sum(weight.numel() for weight in made.transformer.parameters()):,} weights of a transformer: {arguments.folder}"
    )


if __name__ == "__main__":
    main()
