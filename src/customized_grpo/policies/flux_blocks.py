"""FLUX.1's blocks in fewer passes over activations than diffusers' own; both agree within rounding.

Queries and keys are normed and turned in one go; a norm is scaled and shifted, and a gated output added, in one pass
each. And the last block works out the tokens of the picture alone: of the prompt's and the references' it needs keys
and values, but nobody looks at what would become of them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor
from torch.nn import functional

from customized_grpo.policies import shortcuts
from customized_grpo.policies.attention import attention, fits
from customized_grpo.policies.gelu import gelu
from customized_grpo.policies.rotary import Rotary, normed_and_turned

_ALL = slice(None)


def shorten(transformer: Any, drawn: int) -> None:
    """Have the blocks of a `FluxTransformer2DModel` computed as above; the picture's `drawn` tokens lead its input.

    From then on its output is of these tokens alone. Weights and their names stay as they are.
    """
    for processor in transformer.attn_processors.values():
        processor.__class__ = _Processor
    for block in transformer.transformer_blocks:
        block.__class__ = _DoubleBlock
    for block in transformer.single_transformer_blocks:
        block.__class__, block.drawn = _SingleBlock, None
    transformer.single_transformer_blocks[-1].drawn = drawn


class _Processor(FluxAttnProcessor):  # type: ignore[misc]  # diffusers has no types
    """Joint attention as diffusers computes it, but for norms and rotary embeddings; queries of some tokens alone."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        asking: slice = _ALL,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`asking` are the tokens that have queries, of a block without a stream of its own for the prompt."""

        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:-1], -1, attn.head_dim)

        told = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        shown = slice(told, None) if told else _ALL
        of_queries = asking if encoder_hidden_states is None else shown
        asked = hidden_states if asking == _ALL else hidden_states[:, asking]
        query = normed_and_turned(heads(attn.to_q(asked)), attn.norm_q, image_rotary_emb, of_queries)
        key = normed_and_turned(heads(attn.to_k(hidden_states)), attn.norm_k, image_rotary_emb, shown)
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            first, prompt = slice(told), encoder_hidden_states
            told_query = normed_and_turned(heads(attn.add_q_proj(prompt)), attn.norm_added_q, image_rotary_emb, first)
            told_key = normed_and_turned(heads(attn.add_k_proj(prompt)), attn.norm_added_k, image_rotary_emb, first)
            query, key = torch.cat([told_query, query], 1), torch.cat([told_key, key], 1)
            value = torch.cat([heads(attn.add_v_proj(prompt)), value], 1)
        attended = self._attend(query, key, value, attention_mask).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended
        of_prompt, of_picture = attended.split_with_sizes([told, hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](of_picture.contiguous())), attn.to_add_out(of_prompt.contiguous())

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Of (B, tokens, heads, D) each."""
        across = [part.transpose(1, 2) for part in (query, key, value)]
        if self._attention_backend is None and mask is None and shortcuts.taken() and fits(*across):
            return attention(*across).transpose(1, 2)
        found: Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return found


class _Block:
    """Before a class of diffusers' blocks, whose arguments `fewer_passes` takes."""

    def forward(self: Any, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        compute = self.fewer_passes if shortcuts.taken() else super().forward  # type: ignore[misc]  # of the class behind it
        made: tuple[Tensor, Tensor] = compute(*given, **named)
        return made


class _DoubleBlock(_Block, FluxTransformerBlock):  # type: ignore[misc]
    """Of a stream for the prompt and one for picture and references."""

    def fewer_passes(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The prompt's tokens (B, T, D), and the others'."""
        shown, told = self.norm1, self.norm1_context
        numbers, told_numbers = (norm.linear(norm.silu(temb)).chunk(6, dim=1) for norm in (shown, told))
        # Not by the module, which inspects the processor's signature each time.
        attended, told_attended = self.attn.processor(
            self.attn,
            hidden_states=_modulated(shown.norm(hidden_states), *numbers[:2]),
            encoder_hidden_states=_modulated(told.norm(encoder_hidden_states), *told_numbers[:2]),
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        picture = _moved(hidden_states, attended, numbers[2])
        picture = _moved(picture, _inner(self.ff, _modulated(self.norm2(picture), *numbers[3:5])), numbers[5])
        prompt = _moved(encoder_hidden_states, told_attended, told_numbers[2])
        inner = _inner(self.ff_context, _modulated(self.norm2_context(prompt), *told_numbers[3:5]))
        return _bounded(_moved(prompt, inner, told_numbers[5])), picture


class _SingleBlock(_Block, FluxSingleTransformerBlock):  # type: ignore[misc]
    """Of one stream for all tokens; the last of them is that of the picture's alone, the first after the prompt's."""

    drawn: int | None
    """How many these are; None: any other block."""

    def fewer_passes(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The prompt's tokens (B, T, D), and the others'; of the last block as they came, and the picture's."""
        told = encoder_hidden_states.shape[1]
        wanted = _ALL if self.drawn is None else slice(told, told + self.drawn)
        tokens = torch.cat([encoder_hidden_states, hidden_states], 1)
        shift, scale, gate = self.norm.linear(self.norm.silu(temb)).chunk(3, dim=1)
        normed = _modulated(self.norm.norm(tokens), shift, scale)
        attended = self.attn.processor(
            self.attn, normed, image_rotary_emb=image_rotary_emb, asking=wanted, **(joint_attention_kwargs or {})
        )
        inner = _activated(self.proj_mlp(normed[:, wanted]))
        moved = _bounded(_moved(tokens[:, wanted], self.proj_out(torch.cat([attended, inner], 2)), gate))
        return (moved[:, :told], moved[:, told:]) if self.drawn is None else (encoder_hidden_states, moved)


def _modulated(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


def _moved(x: Tensor, by: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, gate[:, None], by)


def _inner(layer: Any, x: Tensor) -> Tensor:
    """Of diffusers' `FeedForward`: outwards, GELU in its tanh form, a dropout of nothing, inwards."""
    made: Tensor = layer.net[2](_activated(layer.net[0].proj(x)))
    return made


def _activated(x: Tensor) -> Tensor:
    return gelu(x) if x.device.type == "cpu" else functional.gelu(x, approximate="tanh")


def _bounded(x: Tensor) -> Tensor:
    """As diffusers bounds what a block leaves in float16."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


#: diffusers and accelerate find the blocks to compile, or to shard, by these names.
_DoubleBlock.__name__ = FluxTransformerBlock.__name__
_SingleBlock.__name__ = FluxSingleTransformerBlock.__name__
