"""A FluxKontextPipeline of diffusers' own classes, with few and random weights, made offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CLIP_TOKENS = 40
WORDS = ["a", "the", "red", "blue", "bird", "cat", "dog", "in", "on", "snow", "hat", "wearing"]


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE without merges: every text is spelt."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=CLIP_TOKENS)


def t5_tokenizer() -> T5TokenizerFast:
    """Unigram over a few words and all letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -3.0)]
    letters = [(chr(code), -6.0) for code in range(ord("a"), ord("z") + 1)]
    words = [(f"▁{word}", -2.0) for word in WORDS]
    return T5TokenizerFast(vocab=[*special, *letters, *words], extra_ids=0)


def randomise(pipeline: Any, seed: int) -> torch.Generator:
    """Initialise every weight from a Gaussian, biases too, so that each input reaches the output.

    The decoder's last layer is small, so that images keep within [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    for part in pipeline.components.values():
        for name, weight in part.named_parameters() if isinstance(part, nn.Module) else ():
            gain = 0.2 if name == "decoder.conv_out.weight" else 1.2
            norm = "norm" in name and (weight.ndim == 1 or name.endswith("gamma"))
            scale = 0.05 if weight.ndim < 2 or norm else gain / weight[0].numel() ** 0.5
            nn.init.normal_(weight, 1.0 if norm else 0.0, scale, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return generator


#: A VAE of which a latent pixel covers 4x4 pixels.
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
    "mid_block_add_attention": False,
}


def vae(latent_channels: int) -> AutoencoderKL:
    """A VAE as FLUX.1's."""
    return AutoencoderKL(
        **VAE,
        latent_channels=latent_channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.7,
        shift_factor=0.1,
    )


def clip_config(clip: CLIPTokenizer, hidden_size: int, layers: int) -> CLIPTextConfig:
    """The config of a small text encoder for that tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=16,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.eos_token_id,
    )


def flux_kontext(
    *, width: int = 32, layers: int = 1, dynamic_shifting: bool = False, seed: int = 0
) -> FluxKontextPipeline:
    """A float32 pipeline of random weights; `width` is that of the transformer, a multiple of 16 (one head each)."""
    heads = width // 16
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shifting),
        vae=vae(latent_channels=4),
        text_encoder=CLIPTextModel(clip_config(clip, 16, 1)),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=24,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=layers,
            num_single_layers=layers,
            attention_head_dim=16,
            num_attention_heads=heads,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    randomise(pipeline, seed)
    return pipeline


def save(pipeline: Any, folder: Path) -> Path:
    """The folder, with the pipeline in safetensors."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_flux_kontext(folder: Path, **options: Any) -> Path:
    """The folder, with such a pipeline in safetensors."""
    return save(flux_kontext(**options), folder)


def flux(**options: Any) -> FluxPipeline:
    """A FluxPipeline of the same parts."""
    return FluxPipeline(**flux_kontext(**options).components)


def save_flux(folder: Path, **options: Any) -> Path:
    """The folder, with such a FluxPipeline in safetensors."""
    return save(flux(**options), folder)
