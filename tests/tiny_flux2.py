"""The FLUX.2 pipelines of diffusers' own classes, with few and random weights, made offline."""

from __future__ import annotations

from typing import Any

import tiny
import tiny_qwen
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

save = tiny.save
_HIDDEN = 8
# The pipelines read the text encoder's layers up to these.
_QWEN_LAYERS, _MISTRAL_LAYERS = 27, 30

# As Qwen3 has it, where thinking is off; and the order of Mistral's parts, which come as lists.
_QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
_MISTRAL_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}[SYS]{% else %}[INST]{% endif %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}[/INST]{% endfor %}"
)


def tokenizer(template: str) -> Qwen2Tokenizer:
    """Every text is spelt, but for the marks of the template."""
    made = tiny_qwen.tokenizer(["<|im_start|>", "<|im_end|>", "<think>", "</think>", "[SYS]", "[INST]", "[/INST]"])
    made.chat_template = template
    return made


def _text(layers: int, words: int) -> dict[str, Any]:
    return {
        "vocab_size": words,
        "hidden_size": _HIDDEN,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 512,
    }


def _parts(*, dev: bool, width: int, layers: int, dynamic_shifting: bool) -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shifting),
        "vae": AutoencoderKLFlux2(**tiny.VAE, latent_channels=4),
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=layers,
            num_single_layers=layers,
            attention_head_dim=16,
            num_attention_heads=width // 16,
            joint_attention_dim=3 * _HIDDEN,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=dev,
        ),
    }


def _randomise(pipeline: Any, seed: int) -> None:
    """Apply `tiny.randomise`, and randomise the statistics of the VAE's batch norm too."""
    generator, statistics = tiny.randomise(pipeline, seed), pipeline.vae.bn
    nn.init.normal_(statistics.running_mean, 0.0, 0.3, generator=generator)
    nn.init.uniform_(statistics.running_var, 0.4, 2.0, generator=generator)


def klein(
    *, width: int = 32, layers: int = 1, dynamic_shifting: bool = True, distilled: bool = True, seed: int = 0
) -> Flux2KleinPipeline:
    """A float32 klein; `width` is that of the transformer, a multiple of 16 (one head each)."""
    spelling = tokenizer(_QWEN_TEMPLATE)
    pipeline = Flux2KleinPipeline(
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_text(_QWEN_LAYERS, len(spelling)))),
        tokenizer=spelling,
        is_distilled=distilled,
        **_parts(dev=False, width=width, layers=layers, dynamic_shifting=dynamic_shifting),
    )
    _randomise(pipeline, seed)
    return pipeline


def klein_kv(**options: Any) -> Flux2KleinKVPipeline:
    """A klein of the pipeline that caches keys and values of references."""
    return Flux2KleinKVPipeline(**klein(**options).components)


def dev(*, width: int = 32, layers: int = 1, dynamic_shifting: bool = True, seed: int = 0) -> Flux2Pipeline:
    """A float32 dev. In place of its PixtralProcessor, which needs torchvision, stands a tokenizer.

    Both have the method `apply_chat_template`, which is all that the pipeline calls.
    """
    spelling = tokenizer(_MISTRAL_TEMPLATE)
    vision = PixtralVisionConfig(
        hidden_size=_HIDDEN, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=4, image_size=32
    )
    text = MistralConfig(**_text(_MISTRAL_LAYERS, len(spelling)))
    pipeline = Flux2Pipeline(
        text_encoder=Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer=spelling,
        **_parts(dev=True, width=width, layers=layers, dynamic_shifting=dynamic_shifting),
    )
    _randomise(pipeline, seed)
    return pipeline
