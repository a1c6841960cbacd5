"""The LongCatImageEditPipeline and JoyImageEditPlusPipeline of diffusers' own classes, with few and random weights."""

from __future__ import annotations

import tiny
import tiny_qwen
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
)
from transformers import (
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


def longcat(*, width: int = 32, layers: int = 1, seed: int = 0) -> LongCatImageEditPipeline:
    """A float32 pipeline; `width` is that of the transformer, a multiple of 16 (one head each).

    The pipeline has 16 latent channels in its code. A token covers 8x8 pixels.
    """
    spelling = tiny_qwen.tokenizer()
    pipeline = LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny.vae(latent_channels=16),
        text_encoder=tiny_qwen.text_encoder(spelling),
        tokenizer=spelling,
        text_processor=Qwen2VLProcessor(Qwen2VLImageProcessorPil(), spelling),
        transformer=LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=layers,
            num_single_layers=layers,
            attention_head_dim=16,
            num_attention_heads=width // 16,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    tiny.randomise(pipeline, seed)
    return pipeline


def joyimage(*, width: int = 32, layers: int = 2, seed: int = 0) -> JoyImageEditPlusPipeline:
    """A float32 pipeline; `width` is that of the transformer, a multiple of 16 (one head each).

    A token covers 8x8 pixels.
    """
    spelling = tiny_qwen.tokenizer()
    pipeline = JoyImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        vae=AutoencoderKLWan(**tiny_qwen.VAE, scale_factor_spatial=4),
        text_encoder=Qwen3VLForConditionalGeneration(
            tiny_qwen.config_of(
                Qwen3VLConfig,
                spelling,
                {"head_dim": 8, **tiny_qwen.rope(2, 1, 1)},
                {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            )
        ),
        tokenizer=spelling,
        processor=Qwen3VLProcessor(
            Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96}), spelling
        ),
        transformer=JoyImageEditPlusTransformer3DModel(
            in_channels=4,
            hidden_size=width,
            num_attention_heads=width // 16,
            text_dim=16,
            num_layers=layers,
            rope_dim_list=[4, 6, 6],
        ),
    )
    tiny.randomise(pipeline, seed)
    return pipeline
