"""FLUX.1 Kontext (arXiv 2506.15742) as a policy, of diffusers' own parts.

A deterministic Euler rollout of it is what `FluxKontextPipeline` draws, and what it saves is what
that pipeline loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.models import ModelError
from customized_grpo.policies.pipelines import check_batch, device_of, load_pipeline, load_transformer
from customized_grpo.policies.tuning import FullTuning, LoraTuning, Tuning
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

_REFERENCE = "reference_{}"  # Conditions.rows: the k-th reference, from 1

# The pipeline's patches: 2x2 latents make one token.
_PATCH = 2


class FluxKontextPolicy:
    """The transformer of a `FluxKontextPipeline` as a `protocols.Policy`.

    Latents are the pipeline's packed tokens, float32 (B, tokens, channels), of pictures of
    `config.height` x `config.width`, floored to multiples of a token's side as the pipeline does.

    The k-th reference image, counted from 1, has k as the first coordinate of its position ids (the
    image to draw has 0): for one reference that is the pipeline's own choice. References are
    resized to the nearest in shape of `config.reference_sizes`.

    `Conditions.rows` holds prompt_embeds (B, T, D), pooled (B, P), and for each reference its
    tokens on their grid, (B, rows, columns, channels), so that conditions of equal signature have
    equal position ids.

    The weights may be stored in any precision; all are converted to `config.dtype`. LoRA parameters
    are float32 throughout. Attention runs on torch's own choice of kernel, with gradients and
    without: a replay then has the very bits of its rollout. (On a CPU that is flash attention,
    faster in both modes than the math kernel; the environment variable DIFFUSERS_ATTN_BACKEND sets
    another, again for both.)

    Args:
        config: model, size, precision and what to tune.

    Raises:
        ModelError: the path holds no FluxKontextPipeline in safetensors, a size is less than one
            token, or LoRA targets do not exist.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._pipeline = load_pipeline(config, FluxKontextPipeline)
        self._transformer = self._pipeline.transformer
        self._tuning: Tuning
        if config.lora is not None:
            self._tuning = LoraTuning(self._transformer, config.lora, LORA_TARGETS, exclude=_LAST_PROJECTION)
        else:
            self._tuning = FullTuning(self._transformer, self._load_transformer)
        if config.gradient_checkpointing:
            self._transformer.enable_gradient_checkpointing()
        self._device = device_of(config)
        self._pipeline.to(self._device)
        multiple = self._pipeline.vae_scale_factor * _PATCH
        self._grid = (config.height // multiple, config.width // multiple)
        if 0 in self._grid:
            raise ModelError(
                f"policy.height and policy.width: {config.height}x{config.width} is less than one "
                f"token of this model; give at least {multiple}x{multiple}"
            )
        self._ids: dict[tuple[tuple[int, int], ...], Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(tokens, channels)."""
        rows, columns = self._grid
        return rows * columns, self._transformer.config.in_channels

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
            rows[_REFERENCE.format(k)] = self._encode_reference(picture)
        return Conditions(rows)

    def sigmas(self, steps: int) -> Tensor:
        """The scheduler's noise levels, on the CPU, shifted as the pipeline does for this size.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        scheduler = self._pipeline.scheduler
        levels: Any = np.linspace(1.0, 1 / steps, steps)
        mu = kontext.calculate_shift(
            self.latent_shape[0],
            scheduler.config.get("base_image_seq_len", 256),
            scheduler.config.get("max_image_seq_len", 4096),
            scheduler.config.get("base_shift", 0.5),
            scheduler.config.get("max_shift", 1.15),
        )
        kontext.retrieve_timesteps(scheduler, sigmas=levels, mu=mu)
        shifted: Tensor = scheduler.sigmas.float().cpu().clone()
        return shifted

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Velocity float32 (B, tokens, channels) of latents of that shape at noise levels (B,).

        Carries a gradient to `trainable()` where gradients are enabled, but not in `reference()`.

        Raises:
            ValueError: shapes disagree.
        """
        check_batch(latents, sigma, conditions, self.latent_shape)
        rows = {name: row.to(self._device, self._dtype) for name, row in conditions.rows.items()}
        prompt = rows["prompt_embeds"]
        references = [rows[_REFERENCE.format(k)] for k in range(1, len(rows) - 1)]
        grids = (self._grid, *[(r.shape[1], r.shape[2]) for r in references])
        tokens = [latents.to(self._device, self._dtype), *[r.flatten(1, 2) for r in references]]
        # As the pipeline goes, so that the model meets the very same numbers in every precision.
        scale = self._pipeline.scheduler.config.num_train_timesteps
        timestep = (sigma.to(self._device, torch.float32) * scale).to(self._dtype) / 1000
        guidance = None
        if self._transformer.config.guidance_embeds:
            guidance = torch.full((len(latents),), self._config.guidance, device=self._device)
        output: Tensor = self._transformer(
            hidden_states=torch.cat(tokens, dim=1),
            timestep=timestep,
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
        height, width = (side * factor * _PATCH for side in self._grid)
        vae = self._pipeline.vae
        unpacked = self._pipeline._unpack_latents(latents.to(self._device, self._dtype), height, width, factor)
        unpacked = unpacked / vae.config.scaling_factor + vae.config.shift_factor
        output = vae.decode(unpacked, return_dict=False)[0]
        pictures: Tensor = self._pipeline.image_processor.postprocess(output, output_type="pt")
        return pictures.float()

    def trainable(self) -> dict[str, nn.Parameter]:
        """The LoRA's parameters, or all of the transformer's, by their names in the transformer."""
        return self._tuning.trainable()

    def reference(self) -> AbstractContextManager[None]:
        """Inside it `velocity` is that of the untuned model, and no gradient is recorded."""
        return self._tuning.reference()

    def save(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors, which `pipeline.load_lora_weights(folder)` loads.

        All weights, where all are tuned, go to the folder "transformer" in it instead, which
        `FluxTransformer2DModel.from_pretrained` loads.
        """
        self._tuning.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, bit for bit, into the parameters of `trainable()`.

        Raises:
            ModelError: the file is missing, damaged, or of another model; nothing is changed then.
        """
        self._tuning.load(folder)

    def _encode_reference(self, picture: Image.Image) -> Tensor:
        """Tokens of one reference on their grid, (1, rows, columns, channels)."""
        processor, multiple = (
            self._pipeline.image_processor,
            self._pipeline.vae_scale_factor * _PATCH,
        )
        picture = picture.convert("RGB")
        # The pipeline measures a picture in whole tokens; less than one counts as one.
        shape = [max(side, multiple) for side in processor.get_default_height_width(picture)]
        sizes = self._config.reference_sizes
        if sizes is None:
            sizes = [(h, w) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
        height, width = nearest_size(shape[0], shape[1], sizes)
        height, width = height // multiple * multiple, width // multiple * multiple
        if not height or not width:
            raise ModelError(
                f"policy.reference_sizes: a size is less than one token of this model; "
                f"give at least {multiple}x{multiple}"
            )
        pixels = processor.preprocess(processor.resize(picture, height, width), height, width)
        latents = self._pipeline._encode_vae_image(pixels.to(self._device, self._pipeline.vae.dtype), generator=None)
        rows, columns = latents.shape[2] // _PATCH, latents.shape[3] // _PATCH
        packed: Tensor = self._pipeline._pack_latents(latents, 1, *latents.shape[1:])
        return packed.to(self._dtype).reshape(1, rows, columns, -1)

    def _image_ids(self, grids: tuple[tuple[int, int], ...]) -> Tensor:
        """Position ids (tokens, 3) of the image and its references, by their grids."""
        if grids not in self._ids:
            ids = []
            for k, (rows, columns) in enumerate(grids):
                ids.append(self._pipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype))
                ids[-1][:, 0] = k
            self._ids[grids] = torch.cat(ids)
        return self._ids[grids]

    def _load_transformer(self) -> nn.Module:
        """The untuned transformer again, on the CPU."""
        return load_transformer(self._config, type(self._transformer))


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of `sizes` whose aspect ratio is nearest; the narrower of two as near."""
    aspect = width / height
    _, width, height = min((abs(aspect - w / h), w, h) for h, w in sizes)
    return height, width
