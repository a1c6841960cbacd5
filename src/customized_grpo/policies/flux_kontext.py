"""FLUX.1 Kontext (arXiv 2506.15742) as a policy, of diffusers' own parts.

A deterministic Euler rollout of it is what `FluxKontextPipeline` draws, and what it saves is what
that pipeline loads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.pipelines import (
    PATCH,
    REFERENCE,
    Grid,
    PipelinePolicy,
    check_batch,
    nearest_size,
    sequence_shift,
)
from customized_grpo.protocols import Conditions

#: The linear layers that a LoRA adapts by default: those of attention and MLPs in all blocks.
LORA_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "proj_mlp",
    "proj_out",
)
_LAST_PROJECTION = "proj_out"  # shares its name with layers of the single blocks, and is no target


class FluxKontextPolicy(PipelinePolicy):
    """The transformer of a `FluxKontextPipeline` as a `protocols.Policy`.

    The k-th reference image, counted from 1, has k as the first coordinate of its position ids (the
    image to draw has 0): for one reference that is the pipeline's own choice. References are
    resized to the nearest in shape of `config.reference_sizes`.

    `Conditions.rows` holds prompt_embeds (B, T, D), pooled (B, P), and for each reference its
    tokens on their grid, (B, rows, columns, channels), so that conditions of equal signature have
    equal position ids.

    Args:
        config: model, size, precision and what to tune.

    Raises:
        ModelError: the path holds no FluxKontextPipeline in safetensors, a size is less than one
            token, or LoRA targets do not exist.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config, FluxKontextPipeline, lora_targets=LORA_TARGETS, lora_exclude=_LAST_PROJECTION)
        self._ids: dict[tuple[Grid, ...], Tensor] = {}

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditions:
        """The conditions of one pair, one row, in the model's precision and on its device.

        Prompts longer than `config.max_sequence_length` tokens are cut; references may be none.
        """
        embeds, pooled, _ = self._pipeline.encode_prompt(
            prompt, device=self._device, max_sequence_length=self._config.max_sequence_length
        )
        rows = {"prompt_embeds": embeds.to(self._dtype), "pooled": pooled.to(self._dtype)}
        for k, picture in enumerate(references, 1):
            rows[REFERENCE.format(k)] = self._encode_reference(picture)
        return Conditions(rows)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Velocity float32 (B, tokens, channels) of latents of that shape at noise levels (B,).

        Carries a gradient to `trainable()` where gradients are enabled, but not in `reference()`.

        Raises:
            ValueError: shapes disagree.
        """
        check_batch(latents, sigma, conditions, self.latent_shape)
        rows = {name: row.to(self._device, self._dtype) for name, row in conditions.rows.items()}
        prompt = rows["prompt_embeds"]
        tokens, grids = self._tokens(latents, rows)
        guidance = None
        if self._transformer.config.guidance_embeds:
            guidance = torch.full((len(latents),), self._config.guidance, device=self._device)
        output: Tensor = self._transformer(
            hidden_states=tokens,
            timestep=self._timestep(sigma),
            guidance=guidance,
            pooled_projections=rows["pooled"],
            encoder_hidden_states=prompt,
            txt_ids=prompt.new_zeros(prompt.shape[1], 3),
            img_ids=self._image_ids(grids),
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]].float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures float32 (B, 3, H, W) in [0, 1] of clean latents (B, tokens, channels)."""
        factor = self._pipeline.vae_scale_factor
        height, width = (side * factor * PATCH for side in self._grid)
        vae = self._pipeline.vae
        unpacked = self._pipeline._unpack_latents(latents.to(self._device, self._dtype), height, width, factor)
        unpacked = unpacked / vae.config.scaling_factor + vae.config.shift_factor
        output = vae.decode(unpacked, return_dict=False)[0]
        pictures: Tensor = self._pipeline.image_processor.postprocess(output, output_type="pt")
        return pictures.float()

    def _shift(self, steps: int) -> float:
        return sequence_shift(self._pipeline.scheduler, self.latent_shape[0])

    def _encode_reference(self, picture: Image.Image) -> Tensor:
        """Tokens of one reference on their grid, (1, rows, columns, channels)."""
        processor, multiple = self._pipeline.image_processor, self._pipeline.vae_scale_factor * PATCH
        picture = picture.convert("RGB")
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

    def _image_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Position ids (tokens, 3) of the image and its references, by their grids."""
        if grids not in self._ids:
            ids = []
            for k, (rows, columns) in enumerate(grids):
                ids.append(self._pipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype))
                ids[-1][:, 0] = k
            self._ids[grids] = torch.cat(ids)
        return self._ids[grids]
