"""A QwenImageEditPlusPipeline of diffusers' own classes, with few and random weights, made offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import tiny
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
#: A VAE of videos of which a latent pixel covers 4x4 pixels.
VAE: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": [0.3, -0.2, 0.1, -0.4],
    "latents_std": [0.5, 1.6, 2.0, 0.8],
}


@contextmanager
def without_video() -> Iterator[None]:
    """Inside it these processors have no part for videos: that part wants torchvision, and no image needs it."""
    parts = classmethod(lambda cls: ["image_processor", "tokenizer"])
    with (
        mock.patch.object(Qwen2VLProcessor, "get_attributes", parts),
        mock.patch.object(Qwen3VLProcessor, "get_attributes", parts),
    ):
        yield


def tokenizer(marks: Sequence[str] = SPECIAL) -> Qwen2Tokenizer:
    """Byte-level BPE without merges: every text is spelt."""
    letters = sorted(ByteLevel.alphabet())
    made = Qwen2Tokenizer(vocab={token: i for i, token in enumerate([*letters, "<|endoftext|>"])}, merges=[])
    made.add_tokens(list(marks), special_tokens=True)
    return made


def marks(spelling: Qwen2Tokenizer) -> dict[str, int]:
    """The ids of images' and videos' tokens, as a config of transformers names them."""
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, spelling.convert_tokens_to_ids(SPECIAL[2:]), strict=True))


def config_of(kind: Any, spelling: Qwen2Tokenizer, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """The config of a small vision-language model of Qwen's for that tokenizer, with what is its class's own."""
    small = {"hidden_size": 16, "intermediate_size": 32}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), spelling.eos_token_id)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return kind(
        text_config={"vocab_size": len(spelling), **small, **layers, **ends, **text},
        vision_config={"depth": 2, **small, "num_heads": 2, "out_hidden_size": 16, **vision},
        **marks(spelling),
    )


def rope(*sections: int) -> dict[str, Any]:
    """Rotary position embeddings with so many frequencies for time, rows and columns."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)}}


def text_encoder(spelling: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL for that tokenizer."""
    return Qwen2_5_VLForConditionalGeneration(
        config_of(Qwen2_5_VLConfig, spelling, rope(1, 1, 2), {"fullatt_block_indexes": [1]})
    )


def number_image_tokens(encoder: Qwen2_5_VLForConditionalGeneration) -> None:
    """Give the text encoder of a stock pipeline what diffusers 0.42 does not: which tokens are of an image."""

    def add(_: object, args: tuple[object, ...], given: dict[str, torch.Tensor]) -> object:
        return args, {**given, "mm_token_type_ids": (given["input_ids"] == encoder.config.image_token_id).int()}

    encoder.register_forward_pre_hook(add, with_kwargs=True)


def qwen_image_edit(
    *, width: int = 32, layers: int = 2, dynamic_shifting: bool = True, zero_cond_t: bool = False, seed: int = 0
) -> QwenImageEditPlusPipeline:
    """A float32 pipeline; `width` is that of the transformer, a multiple of 16 (one head each).

    `zero_cond_t` is what tells the 2511 model from the 2509 one. A token covers 8x8 pixels. Call it,
    and load what it saves, inside `without_video`.
    """
    spelling = tokenizer()
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0 if dynamic_shifting else 3.0,
            use_dynamic_shifting=dynamic_shifting,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02 if dynamic_shifting else None,
        ),
        vae=AutoencoderKLQwenImage(**VAE),
        text_encoder=text_encoder(spelling),
        tokenizer=spelling,
        processor=Qwen2VLProcessor(Qwen2VLImageProcessorPil(), spelling),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=layers,
            attention_head_dim=16,
            num_attention_heads=width // 16,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=zero_cond_t,
        ),
    )
    tiny.randomise(pipeline, seed)
    return pipeline
