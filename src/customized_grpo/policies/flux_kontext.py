"""FLUX.1 Kontext (arXiv 2506.15742) as a policy, of diffusers' own parts.

A deterministic Euler rollout of it is what `FluxKontextPipeline` draws, and what it saves is what
that pipeline loads.
"""

from __future__ import annotations

import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image
from torch import Tensor

from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.pipelines import PATCH, Grid, nearest_size


class FluxKontextPolicy(FluxPolicy):
    """The transformer of a `FluxKontextPipeline` as a `protocols.Policy`.

    The k-th reference image, counted from 1, has k as the first coordinate of its position ids (the
    image to draw has 0): for one reference that is the pipeline's own choice. References are
    resized to the nearest in shape of `config.reference_sizes`; they may be none. Prompts longer than
    `config.max_sequence_length` tokens are cut.

    The dev model is distilled: `config.guidance` is an input of it, and there is one pass a step. True classifier-free
    guidance, `config.true_cfg`, comes on top where it is above 1, as in the pipeline.

    `Conditions.rows` holds prompt_embeds (B, T, D), pooled (B, P), and for each reference its
    tokens on their grid, (B, rows, columns, channels), so that conditions of equal signature have
    equal position ids.

    Args:
        config: model, size, precision and what to tune.

    Raises:
        ModelError: the path holds no FluxKontextPipeline in safetensors, a size is less than one
            token, or LoRA targets do not exist.
    """

    pipelines = (FluxKontextPipeline,)

    def encode_reference(self, picture: Image.Image, count: int) -> Tensor:
        processor, multiple = self._pipeline.image_processor, self._pipeline.vae_scale_factor * PATCH
        # The pipeline measures a picture in whole tokens; less than one counts as one.
        shape = [max(side, multiple) for side in processor.get_default_height_width(picture)]
        sizes = self._config.reference_sizes
        if sizes is None:
            sizes = [(h, w) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
        height, width = nearest_size(shape[0], shape[1], sizes)
        rows, columns = self._tokens_of("policy.reference_sizes", height, width)
        height, width = rows * multiple, columns * multiple
        pixels = processor.preprocess(processor.resize(picture, height, width), height, width)
        latents = self._pipeline._encode_vae_image(pixels.to(self._device, self._pipeline.vae.dtype), generator=None)
        packed: Tensor = self._pipeline._pack_latents(latents, 1, *latents.shape[1:])
        return packed.to(self._dtype).reshape(1, rows, columns, -1)

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Position ids (tokens, 3) of the image and its references, by their grids."""
        ids = []
        for k, (rows, columns) in enumerate(grids):
            ids.append(self._pipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype))
            ids[-1][:, 0] = k
        return torch.cat(ids)
