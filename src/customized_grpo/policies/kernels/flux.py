"""FLUX.1's transformer blocks with fewer passes over activations than diffusers' own, equal within rounding.

Norms and rotary embeddings of queries and keys are fused, and so are scale and shift of a norm, and gate and residual
sum. The last block computes the image's tokens only: of prompt and references it needs keys and values alone.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor
from torch.nn import functional

from customized_grpo.policies import shortcuts
from customized_grpo.policies.kernels import usable
from customized_grpo.policies.kernels.rotary import Rotary, norm_and_rotate

USABLE = usable(
    "FLUX.1 block",
    {
        FluxTransformerBlock.forward: "0b184cbe1727",
        FluxSingleTransformerBlock.forward: "57350a6dab84",
        FluxAttnProcessor.__call__: "d5b36134887e",
        AdaLayerNormZero.forward: "93374820c014",
        AdaLayerNormZeroSingle.forward: "d48dfb2b1e75",
        FeedForward.forward: "dae2c9f53987",
    },
)
_ALL = slice(None)


def fuse_blocks(transformer: Any, image_tokens: int | None) -> None:
    """Replace the forward methods of a `FluxTransformer2DModel`'s blocks, whose modules and weights stay the same.

    Its output then has the first `image_tokens` only, those of the image; all tokens if their number varies (None).
    """
    if not USABLE:
        return
    for block in transformer.transformer_blocks:
        block.forward = MethodType(_double_block, block)
    *others, last = transformer.single_transformer_blocks
    for block in others:
        block.forward = MethodType(_single_block, block)
    last.forward = MethodType(partial(_single_block, image_tokens=image_tokens), last)


def _double_block(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Rotary | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the prompt's tokens (B, T, D) and those of image and references."""
    if joint_attention_kwargs or not shortcuts.taken():
        own: tuple[Tensor, Tensor] = FluxTransformerBlock.forward(
            block, hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
        )
        return own
    norm, prompt_norm, attn = block.norm1, block.norm1_context, block.attn
    image_mod, prompt_mod = (one.linear(one.silu(temb)).chunk(6, dim=1) for one in (norm, prompt_norm))
    attended = _attention(
        attn,
        _modulate(norm.norm(hidden_states), *image_mod[:2]),
        _modulate(prompt_norm.norm(encoder_hidden_states), *prompt_mod[:2]),
        image_rotary_emb,
    )
    prompt_attended, attended = attended.split_with_sizes([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
    attended = attn.to_out[1](attn.to_out[0](attended.contiguous()))
    prompt_attended = attn.to_add_out(prompt_attended.contiguous())
    image = _add_gated(hidden_states, attended, image_mod[2])
    image = _add_gated(image, _feed_forward(block.ff, _modulate(block.norm2(image), *image_mod[3:5])), image_mod[5])
    prompt = _add_gated(encoder_hidden_states, prompt_attended, prompt_mod[2])
    inner = _feed_forward(block.ff_context, _modulate(block.norm2_context(prompt), *prompt_mod[3:5]))
    return _clip(_add_gated(prompt, inner, prompt_mod[5])), image


def _single_block(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Rotary | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
    image_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the prompt's tokens and the others; with `image_tokens` the prompt's unchanged, and the image's only."""
    if joint_attention_kwargs or not shortcuts.taken():
        own: tuple[Tensor, Tensor] = FluxSingleTransformerBlock.forward(
            block, hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
        )
        return own
    length = encoder_hidden_states.shape[1]
    wanted = _ALL if image_tokens is None else slice(length, length + image_tokens)
    tokens = torch.cat([encoder_hidden_states, hidden_states], 1)
    shift, scale, gate = block.norm.linear(block.norm.silu(temb)).chunk(3, dim=1)
    normed = _modulate(block.norm.norm(tokens), shift, scale)
    attended = _attention(block.attn, normed, None, image_rotary_emb, wanted)
    inner = functional.gelu(block.proj_mlp(normed[:, wanted]), approximate="tanh")
    output = _clip(_add_gated(tokens[:, wanted], block.proj_out(torch.cat([attended, inner], 2)), gate))
    if image_tokens is None:
        return output[:, :length], output[:, length:]
    return encoder_hidden_states, output


def _attention(
    attn: Any, tokens: Tensor, prompt: Tensor | None, rotary: Rotary | None, queries: slice = _ALL
) -> Tensor:
    """Compute attention as `FluxAttnProcessor` does, up to the output layers; (B, prompt and other tokens, D).

    In blocks of two streams the prompt's tokens are apart, in blocks of one a slice of the tokens has `queries`.
    """

    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], -1, attn.head_dim)

    length = 0 if prompt is None else prompt.shape[1]
    place = slice(length, None) if length else _ALL
    queried = tokens if queries == _ALL else tokens[:, queries]
    query = norm_and_rotate(heads(attn.to_q(queried)), attn.norm_q, rotary, queries if prompt is None else place)
    key = norm_and_rotate(heads(attn.to_k(tokens)), attn.norm_k, rotary, place)
    value = heads(attn.to_v(tokens))
    if prompt is not None:
        first = slice(length)
        prompt_query = norm_and_rotate(heads(attn.add_q_proj(prompt)), attn.norm_added_q, rotary, first)
        prompt_key = norm_and_rotate(heads(attn.add_k_proj(prompt)), attn.norm_added_k, rotary, first)
        query, key = torch.cat([prompt_query, query], 1), torch.cat([prompt_key, key], 1)
        value = torch.cat([heads(attn.add_v_proj(prompt)), value], 1)
    processor = attn.processor
    attended: Tensor = dispatch_attention_fn(
        query, key, value, backend=processor._attention_backend, parallel_config=processor._parallel_config
    )
    return attended.flatten(2, 3).to(query.dtype)


def _modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


def _add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, gate[:, None], update)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    """Compute diffusers' `FeedForward` with GELU in its tanh form and no dropout."""
    return layer.net[2](functional.gelu(layer.net[0].proj(x), approximate="tanh"))


def _clip(x: Tensor) -> Tensor:
    """Limit float16 as diffusers does at the end of a block."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
