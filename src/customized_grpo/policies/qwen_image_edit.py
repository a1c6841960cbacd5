"""Qwen-Image-Edit-2509 and -2511 (arXiv 2508.02324) as a policy, of diffusers' own parts.

A deterministic Euler rollout of it is what `QwenImageEditPlusPipeline` draws, and what it saves is
what that pipeline loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.pipelines import (
    ATTENTION,
    PATCH,
    Grid,
    PipelinePolicy,
    nearest_size,
    sequence_shift,
)
from customized_grpo.utils.hub import ModelError

#: The linear layers that a LoRA adapts by default: those of attention and MLPs in all blocks. (Those
#: of the last block that only move its text tokens reach no picture, and stay as they are.)
LORA_TARGETS = (
    *ATTENTION,
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)


class QwenImageEditPolicy(PipelinePolicy):
    """The transformer of a `QwenImageEditPlusPipeline` as a `protocols.Policy`.

    Each reference is seen twice: by the text encoder, at the pipeline's own size, and by the
    transformer as tokens of the VAE, at the nearest in shape of `config.reference_sizes`, or at the
    pipeline's own size (about 1024x1024 pixels in the reference's shape) where that is None. The
    pipeline draws nothing without a reference.

    `Conditions.rows` holds prompt_embeds (B, T, D), and for each reference its tokens on their grid,
    (B, rows, columns, channels), so that conditions of equal signature have equal position ids. T
    varies with the prompt and with the number and shapes of the references; no row is padded, so
    there is no mask.

    These models are made for true classifier-free guidance (`config.true_cfg`; their pipeline's own scale is 4), which
    this pipeline gives the length, token by token, of the velocity that is told the prompt. Off, there is one pass a
    step. Of `config`, `guidance` has no effect, as these models have no such input, and neither has
    `max_sequence_length`, as the pipeline cuts no prompt.

    Loading the pipeline takes torchvision, which transformers' Qwen2VLProcessor asks for. With
    transformers 5, diffusers 0.42 does not tell the text encoder which tokens are of an image, so that
    these get the positions of text (diffusers issue 14194); the policy does here what the installed
    pipeline does.

    Args:
        config: model, size, precision and what to tune.

    Raises:
        ModelError: the path holds no QwenImageEditPlusPipeline in safetensors, its transformer wants
            a distilled guidance, a size is less than one token, or LoRA targets do not exist.
    """

    pipelines = (QwenImageEditPlusPipeline,)
    lora_targets = LORA_TARGETS

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        if self._transformer.config.guidance_embeds:
            raise ModelError(
                f"policy.path: {config.path} is guidance-distilled, which policy.kind qwen-image-edit is not; "
                f"give Qwen-Image-Edit-2509 or -2511"
            )

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """prompt_embeds (1, T, D). Raises ModelError where there is no reference."""
        if not references:
            raise ModelError(f"a QwenImageEditPlusPipeline needs a reference image; give one to the prompt {prompt!r}")
        seen = [self._view(picture) for picture in references]
        embeds, _ = self._pipeline.encode_prompt(prompt, image=seen, device=self._device)
        return {"prompt_embeds": embeds.to(self._dtype)}

    def decode_latents(self, latents: Tensor) -> Tensor:
        factor = self._pipeline.vae_scale_factor
        height, width = (side * factor * PATCH for side in self._grid)
        vae = self._pipeline.vae
        unpacked = self._pipeline._unpack_latents(latents.to(self._device, self._dtype), height, width, factor)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(unpacked)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        # Divided by the inverse, as the pipeline does: the same bits in half precision too.
        output = vae.decode(unpacked / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
        pictures: Tensor = self._pipeline.image_processor.postprocess(output, output_type="pt")
        return pictures.float()

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        prompt = rows["prompt_embeds"]
        shapes = [(1, height, width) for height, width in grids]
        return {"encoder_hidden_states": prompt, "img_shapes": [shapes] * len(prompt)}

    def guided(self, told: Tensor, negative: Tensor) -> Tensor:
        guided = super().guided(told, negative)
        scaled: Tensor = guided * (told.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return scaled

    def shift(self, steps: int) -> float:
        return sequence_shift(self._pipeline.scheduler, self.latent_shape[0])

    def _view(self, picture: Image.Image) -> Image.Image:
        """One reference as the text encoder sees it."""
        width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, picture.width / picture.height)
        resized: Image.Image = self._pipeline.image_processor.resize(picture, height, width)
        return resized

    def encode_reference(self, picture: Image.Image, count: int) -> Tensor:
        multiple = self._pipeline.vae_scale_factor * PATCH
        if self._config.reference_sizes is None:
            width, height = plus.calculate_dimensions(plus.VAE_IMAGE_SIZE, picture.width / picture.height)
        else:
            height, width = nearest_size(picture.height, picture.width, self._config.reference_sizes)
        rows, columns = self._tokens_of("policy.reference_sizes", height, width)
        height, width = rows * multiple, columns * multiple
        pixels = self._pipeline.image_processor.preprocess(picture, height, width).unsqueeze(2)
        latents = self._pipeline._encode_vae_image(pixels.to(self._device, self._dtype), generator=None)
        channels, _, *sides = latents.shape[1:]
        packed: Tensor = self._pipeline._pack_latents(latents, 1, channels, *sides)
        return packed.to(self._dtype).reshape(1, rows, columns, -1)
