"""FLUX.1's blocks in fewer passes over activations than diffusers' own; both agree within rounding.

Rotary embeddings are one product of complex numbers, where diffusers negates, stacks, multiplies twice and adds. And
the last block works out the tokens of the picture alone: of the prompt's and the references' it needs keys and values,
but nobody looks at what would become of them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxSingleTransformerBlock
from torch import Tensor

from customized_grpo.policies import shortcuts

_COMPLEX = ("cpu", "cuda", "meta")  # devices that multiply complex numbers in one pass


def shorten(transformer: Any, drawn: int) -> None:
    """Have the blocks of a `FluxTransformer2DModel` computed as above; the picture's `drawn` tokens lead its input.

    From then on its output is of these tokens alone. Weights and their names stay as they are.
    """
    transformer.set_attn_processor(_Processor())
    last = transformer.single_transformer_blocks[-1]
    last.__class__, last.drawn = _LastBlock, drawn


def turned(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys x (B, tokens, heads, D), turned by cosines and sines (tokens, D), each of which comes twice."""
    if x.device.type not in _COMPLEX or torch.compiler.is_compiling() or not shortcuts.taken():
        own: Tensor = apply_rotary_emb(x, rotary, sequence_dim=1)
        return own
    cosine, sine = (part.to(x.device, torch.float32)[:, None, ::2] for part in rotary)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(cosine, sine)).flatten(3).to(x.dtype)


class _Processor(FluxAttnProcessor):  # type: ignore[misc]  # diffusers has no types
    """Joint attention as diffusers computes it, but for the rotary embeddings; with queries of some tokens alone."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        asking: slice = slice(None),
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`asking` are the tokens that have queries, of a block without a stream of its own for the prompt."""

        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:-1], -1, attn.head_dim)

        query = attn.norm_q(heads(attn.to_q(hidden_states[:, asking])))
        key, value = attn.norm_k(heads(attn.to_k(hidden_states))), heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            told_query = attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))
            told_key = attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))
            query, key = torch.cat([told_query, query], 1), torch.cat([told_key, key], 1)
            value = torch.cat([heads(attn.add_v_proj(encoder_hidden_states)), value], 1)
        if image_rotary_emb is not None:
            query = turned(query, (image_rotary_emb[0][asking], image_rotary_emb[1][asking]))
            key = turned(key, image_rotary_emb)
        attended: Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended
        told, shown = attended.split_with_sizes([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](shown.contiguous())), attn.to_add_out(told.contiguous())


class _LastBlock(FluxSingleTransformerBlock):  # type: ignore[misc]
    """Of the picture's tokens alone, which are the first `drawn` after the prompt's."""

    drawn: int

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The prompt's tokens as they came, (B, T, D), and the picture's (B, drawn, D)."""
        if not shortcuts.taken():
            whole: tuple[Tensor, Tensor] = super().forward(
                hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
            )
            return whole
        told = encoder_hidden_states.shape[1]
        picture = slice(told, told + self.drawn)
        normed, gate = self.norm(torch.cat([encoder_hidden_states, hidden_states], 1), emb=temb)
        attended = self.attn(
            hidden_states=normed, image_rotary_emb=image_rotary_emb, asking=picture, **(joint_attention_kwargs or {})
        )
        inner = self.act_mlp(self.proj_mlp(normed[:, picture]))
        moved = gate.unsqueeze(1) * self.proj_out(torch.cat([attended, inner], 2))
        drawn = hidden_states[:, : self.drawn] + moved
        return encoder_hidden_states, drawn.clip(-65504, 65504) if drawn.dtype == torch.float16 else drawn


#: diffusers and accelerate find the blocks to compile, or to shard, by this name.
_LastBlock.__name__ = FluxSingleTransformerBlock.__name__
