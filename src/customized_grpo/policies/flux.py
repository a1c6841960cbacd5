"""What the policies of FLUX.1 share: its two text encoders, its transformer's inputs, its latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.flux_blocks import shorten
from customized_grpo.policies.pipelines import ATTENTION, PATCH, Grid, PipelinePolicy, sequence_shift

#: The linear layers that a LoRA adapts by default: those of attention and MLPs in all blocks.
LORA_TARGETS = (
    *ATTENTION,
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "proj_mlp",
    "proj_out",
)


class FluxPolicy(PipelinePolicy):
    """A pipeline of FLUX.1's transformer; a model of this kind adds its references and position ids.

    Args:
        config: model, size, precision and what to tune.
        pipeline: the pipeline's class.
    """

    _on_processor = nullcontext  # our blocks ask for our attention and GELU themselves

    lora_targets = LORA_TARGETS
    lora_exclude = "proj_out"  # the last layer, which shares its name with layers of the single blocks

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        if not config.compile:  # which fuses what it finds
            shorten(self._transformer, self.latent_shape[0])

    def decode_latents(self, latents: Tensor) -> Tensor:
        factor = self._pipeline.vae_scale_factor
        height, width = (side * factor * PATCH for side in self._grid)
        vae = self._pipeline.vae
        unpacked = self._pipeline._unpack_latents(latents.to(self._device, self._dtype), height, width, factor)
        unpacked = unpacked / vae.config.scaling_factor + vae.config.shift_factor
        output = vae.decode(unpacked, return_dict=False)[0]
        pictures: Tensor = self._pipeline.image_processor.postprocess(output, output_type="pt")
        return pictures.float()

    @abstractmethod
    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Position ids (tokens, 3) of the image and its references, by their grids."""

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """prompt_embeds (1, T, D) and pooled (1, P), cut at `config.max_sequence_length` tokens."""
        embeds, pooled, _ = self._pipeline.encode_prompt(
            prompt, device=self._device, max_sequence_length=self._config.max_sequence_length
        )
        return {"prompt_embeds": embeds.to(self._dtype), "pooled": pooled.to(self._dtype)}

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        prompt = rows["prompt_embeds"]
        guidance = None
        if self._transformer.config.guidance_embeds:
            guidance = torch.full((len(prompt),), self._config.guidance, device=self._device)
        return {
            "guidance": guidance,
            "pooled_projections": rows["pooled"],
            "encoder_hidden_states": prompt,
            "txt_ids": prompt.new_zeros(prompt.shape[1], 3),
            "img_ids": self._image_ids(grids),
        }

    def shift(self, steps: int) -> float:
        return sequence_shift(self._pipeline.scheduler, self.latent_shape[0])
