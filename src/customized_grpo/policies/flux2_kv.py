"""FLUX.2 klein with cached reference keys and values as a policy; its Euler rollouts are `Flux2KleinKVPipeline`'s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import Flux2KleinKVPipeline
from diffusers.models.transformers.transformer_flux2 import Flux2KVCache
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.flux2 import Flux2Policy
from customized_grpo.utils.hub import ModelError


class Flux2KVPolicy(Flux2Policy):
    """The transformer of a `Flux2KleinKVPipeline`.

    References attend only to each other, and are modulated as at noise level 0. Their keys and values therefore depend
    neither on the image, nor on the prompt, nor on the noise level. They are computed by a pass over the references
    alone: once for images of a batch with equal references, and inside `sampling()` once for all steps. The gradient
    runs through that pass too.
    """

    pipelines = (Flux2KleinKVPipeline,)
    example_call = "image=[reference],\n    max_sequence_length={tokens},"

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        self._reuses = False
        self._last: tuple[Tensor, Tensor, Flux2KVCache] | None = None

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Make `velocity` reuse keys and values of references; weights must not change inside the context."""
        before, self._reuses = self._reuses, True
        try:
            yield
        finally:
            self._reuses = before
            if not before:
                self._last = None

    def shard(self, fully_shard: Callable[[nn.Module], object]) -> None:
        """Refuse shards: FSDP needs equally many passes in all processes, and here references in common save some.

        It also gathers the last block's weights by the gradient of its output, which the pass over references lacks.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "policy.kind: flux2-klein-kv is not supported with FSDP; launch with recipes/accelerate/8gpu.yaml, or set "
            "policy.kind=flux2 and policy.path=black-forest-labs/FLUX.2-klein-9B"
        )

    def transform(self, tokens: Sequence[Tensor], timestep: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Compute the transformer's output for the image's tokens, (B, tokens, channels)."""
        image, *references = tokens
        if not references:
            return super().transform(tokens, timestep, inputs)
        ids, length = inputs["img_ids"], image.shape[1]
        distinct, rows = _distinct(torch.cat(references, dim=1))
        cache = _of_rows(self._keys_and_values(distinct, ids[:, length:]), rows)
        inputs = {**inputs, "img_ids": ids[:, :length], "kv_cache": cache, "kv_cache_mode": "cached"}
        return super().transform([image], timestep, inputs)

    def _keys_and_values(self, tokens: Tensor, ids: Tensor) -> Flux2KVCache:
        """Return keys and values of reference tokens (N, tokens, channels) with position ids (1, tokens, 4)."""
        reuses = self._reuses and not torch.is_grad_enabled()
        if reuses and self._last is not None:
            *known, cache = self._last
            if all(map(torch.equal, known, (tokens, ids))):
                return cache
        computed: Flux2KVCache = self._transformer(
            hidden_states=tokens,
            timestep=tokens.new_zeros(len(tokens)),
            # One token, to which references do not attend, because attention backends refuse an empty prompt.
            encoder_hidden_states=tokens.new_zeros(len(tokens), 1, self._transformer.config.joint_attention_dim),
            txt_ids=ids.new_zeros(1, 1, ids.shape[-1]),
            img_ids=ids,
            return_dict=False,
            kv_cache_mode="extract",
            num_ref_tokens=tokens.shape[1],
        )[1]
        if reuses:
            self._last = tokens, ids, computed
        return computed


class _SharedKeys(NamedTuple):
    """A `Flux2KVLayerCache` for N distinct references; image b of a batch has those of row `rows[b]`.

    As a tuple it shows its tensors to gradient checkpointing, so that they have a gradient.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor

    def get(self) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, tokens, heads, channels), copied for each image while its layer computes."""
        count = len(self.rows)
        keys, values = (
            part.expand(count, -1, -1, -1) if len(part) == 1 else part.index_select(0, self.rows)
            for part in (self.keys, self.values)
        )
        return keys, values


def _of_rows(cache: Flux2KVCache, rows: Tensor) -> Flux2KVCache:
    """Return the cache for a batch whose images have the references of these rows (B,)."""
    shared = Flux2KVCache(0, 0)
    shared.num_ref_tokens = cache.num_ref_tokens
    shared.double_block_caches = [_SharedKeys(layer.k_ref, layer.v_ref, rows) for layer in cache.double_block_caches]
    shared.single_block_caches = [_SharedKeys(layer.k_ref, layer.v_ref, rows) for layer in cache.single_block_caches]
    return shared


def _distinct(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of (B, tokens, channels), and the place of each row among them, (B,)."""
    places = torch.zeros(len(tokens), dtype=torch.long)
    if tokens.is_meta or len(tokens) == 1:
        return tokens, places.to(tokens.device)
    # Not by torch.unique, which compares long rows in one thread on a GPU. Bits, because NaN equals nothing.
    bits = tokens.flatten(1).view(torch.int16 if tokens.element_size() == 2 else torch.int32)
    firsts: list[int] = []
    left = torch.ones(len(tokens), dtype=torch.bool)
    while left.any():
        first = int(left.nonzero()[0])
        same = (bits == bits[first]).all(1).cpu()
        places[same] = len(firsts)
        firsts.append(first)
        left &= ~same
    return tokens[firsts], places.to(tokens.device)
