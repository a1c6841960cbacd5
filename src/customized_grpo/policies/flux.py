"""Base class of FLUX.1 policies: text encoders, transformer inputs and latents."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.hooks import ATTENTION, Grid
from customized_grpo.policies.kernels.flux import fuse_blocks
from customized_grpo.policies.pipelines import PipelinePolicy


class FluxPolicy(PipelinePolicy):
    """A pipeline of FLUX.1's transformer; a subclass adds references and position ids.

    `Conditions.rows` holds prompt_embeds (B, T, D), pooled (B, P), and for each reference its tokens on their grid,
    (B, rows, columns, channels), so that conditions of equal signature have equal position ids. Prompts are cut at
    `config.max_sequence_length` tokens.
    """

    lora_targets = (
        *ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out",
    )  # fmt: skip
    lora_exclude = "proj_out"  # the last layer, which has the name of layers of the single blocks

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        own = isinstance(self._transformer, FluxTransformer2DModel)
        if own and config.kernels == "auto" and not config.compile:  # inductor fuses by itself
            tokens = {rows * columns for rows, columns in [self._grid, *self._grids.values()]}
            fuse_blocks(self._transformer, tokens.pop() if len(tokens) == 1 else None)

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode a prompt with CLIP and T5 to prompt_embeds (1, T, D) and pooled (1, P)."""
        embeds, pooled, _ = self._pipeline.encode_prompt(
            prompt, device=self._device, max_sequence_length=self._config.max_sequence_length
        )
        return {"prompt_embeds": embeds.to(self._dtype), "pooled": pooled.to(self._dtype)}

    def prompt_shapes(self, references: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `encode_prompt`'s rows, without the batch."""
        return {**super().prompt_shapes(references), "pooled": (self._transformer.config.pooled_projection_dim,)}

    def prompt_tokens(self, prompts: Sequence[str]) -> tuple[list[int], int]:
        """Return the number of T5 tokens of each prompt, and the number that is read. CLIP reads 77 in every case."""
        tokens = self._pipeline.tokenizer_2(list(prompts), verbose=False)["input_ids"]
        return list(map(len, tokens)), self._config.max_sequence_length

    def _resized(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Resize a reference to whole tokens of a size, cropped before if there are several `reference_sizes`."""
        rows, columns = self._tokens_of("policy.reference_sizes", height, width)
        height, width = rows * self.token_pixels, columns * self.token_pixels
        resized: Image.Image = self._pipeline.image_processor.resize(self._cropped(image, height, width), height, width)
        return resized

    def _encode_tokens(self, image: Image.Image) -> Tensor:
        """Encode a reference of whole tokens to (1, rows, columns, channels)."""
        vae, rows, columns = self._pipeline.vae, image.height // self.token_pixels, image.width // self.token_pixels
        pixels = self._pipeline.image_processor.preprocess(image, image.height, image.width)
        latents = vae.encode(pixels.to(self._device, vae.dtype)).latent_dist.mode()
        scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        packed = self._pipeline._pack_latents(scaled, 1, *scaled.shape[1:])
        return packed.to(self._dtype).reshape(1, rows, columns, -1)

    def decode_latents(self, latents: Tensor, grid: Grid) -> Tensor:
        """Decode packed latents (B, tokens, channels) on a grid to images, float32 (B, 3, H, W) in [0, 1]."""
        pipeline, vae = self._pipeline, self._pipeline.vae
        height, width = (side * self.token_pixels for side in grid)
        latents = latents.to(self._device, self._dtype)
        unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        output = vae.decode(unpacked / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        return pipeline.image_processor.postprocess(output, output_type="pt").float()

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """Return prompt embeddings, position ids and, for a distilled model, the guidance scale."""
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
