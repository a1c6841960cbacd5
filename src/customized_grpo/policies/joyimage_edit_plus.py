"""JoyAI-Image-Edit-Plus as a policy of `JoyImageEditPlusPipeline`."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers import JoyImageEditPlusPipeline
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.hooks import Grid, latent_statistics, nearest_size
from customized_grpo.policies.pipelines import PipelinePolicy

_SEEN = 32  # pixels of a token of the text encoder's vision tower


class JoyImageEditPlusPolicy(PipelinePolicy):
    """The transformer of a `JoyImageEditPlusPipeline`.

    References, of which there may be none, go to the text encoder at the pipeline's own size, and to the transformer as
    tokens of the VAE: at the nearest in shape of `config.reference_sizes`, else at the pipeline's own size (about
    1024x1024 pixels), cropped about their centre. The k-th has k as the first coordinate of its positions.

    `Conditions.rows` holds prompt_embeds (B, T, D), T varying with prompt and references, and for each reference its
    tokens on their grid, (B, rows, columns, channels). Rows are not padded, so that attention needs no mask. If T
    exceeds `config.max_sequence_length`, the first tokens are dropped, as by the pipeline. `config.true_cfg` is the
    pipeline's guidance_scale, `config.guidance` has no effect.
    """

    pipelines = (JoyImageEditPlusPipeline,)
    #: Those of the last block that only change its text tokens get no gradient.
    lora_targets = (
        "img_attn_qkv", "img_attn_proj", "txt_attn_qkv", "txt_attn_proj",
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    )  # fmt: skip
    example_call = "images=[reference],\n    guidance_scale={true_cfg},"
    example_guidance = "\n    negative_prompt={negative!r},"
    example_load = (
        "from diffusers.loaders import PeftAdapterMixin\n\n"
        "kind = type(pipeline.transformer)  # has no methods for a LoRA in diffusers 0.42\n"
        "pipeline.transformer.__class__ = type(kind.__name__, (kind, PeftAdapterMixin), {})\n"
        'pipeline.transformer.load_lora_adapter(LORA, weight_name="pytorch_lora_weights.safetensors")'
    )

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        # Rotary embeddings are computed on the CPU in each call otherwise.
        self._transformer._get_rotary_pos_embed_for_range = lru_cache(64)(
            self._transformer._get_rotary_pos_embed_for_range
        )

    @property
    def token_channels(self) -> int:
        """Channels of a patch of latents."""
        return super().token_channels * self._patch**2

    @property
    def token_pixels(self) -> int:
        """Side of a token's square in pixels."""
        return self._pipeline.vae_scale_factor_spatial * self._patch

    @property
    def _patch(self) -> int:
        """Side of a patch in latent pixels."""
        return self._transformer.config.patch_size[-1]

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode a prompt together with its references to prompt_embeds (1, T, D)."""
        processor = self._pipeline.image_processor
        seen = [processor.resize_center_crop(image, processor.get_default_height_width(image)) for image in references]
        # As in the pipeline's __call__.
        text = "<|im_start|>user\n" + "<image>\n" * len(seen) + f"{prompt}<|im_end|>\n"
        embeds, _ = self._pipeline.encode_prompt_multiple_images(
            text, images=seen or None, device=self._device, max_sequence_length=self._config.max_sequence_length
        )
        return {"prompt_embeds": embeds.to(self._dtype)}

    def prompt_shapes(self, references: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of `encode_prompt`'s row for a prompt of 512 tokens, without the batch."""
        # Square references of the pipeline's own size, with the marks of their start and end.
        tokens = 512 + references * ((1024 // _SEEN) ** 2 + 2)
        return {"prompt_embeds": (min(tokens, self._config.max_sequence_length), self._transformer.config.text_dim)}

    def encode_reference(self, image: Image.Image, count: int) -> Tensor:
        """Resize, crop and encode a reference to tokens (1, rows, columns, channels)."""
        pipeline, processor, sizes = self._pipeline, self._pipeline.image_processor, self._config.reference_sizes
        if sizes is None:
            size = processor.get_default_height_width(image)
        else:
            size = nearest_size(image.height, image.width, sizes)
        rows, columns = self._tokens_of("policy.reference_sizes", *size)
        image = processor.resize_center_crop(image, (rows * self.token_pixels, columns * self.token_pixels))
        # Not by its `preprocess`, which resizes to the pipeline's own sizes.
        pixels = processor.normalize(processor.numpy_to_pt(processor.pil_to_numpy(image)))
        pixels = pixels.unsqueeze(2).to(self._device, self._dtype)
        latents = pipeline.vae.encode(pixels.to(pipeline.vae.dtype)).latent_dist.mode().to(self._dtype)
        mean, std = latent_statistics(pipeline.vae, latents)
        patches = ((latents - mean) / std).reshape(1, -1, 1, rows, self._patch, columns, self._patch)
        return patches.permute(0, 3, 5, 1, 2, 4, 6).flatten(3)  # of (B, C, 1, rows, p, columns, p)

    def decode_latents(self, latents: Tensor, grid: Grid) -> Tensor:
        """Decode patches (B, tokens, channels) to images, float32 (B, 3, H, W) in [0, 1]."""
        vae, side = self._pipeline.vae, self._patch
        patches = latents.to(self._device, self._dtype).reshape(len(latents), *grid, -1, 1, side, side)
        unpacked = patches.permute(0, 3, 4, 1, 5, 2, 6).flatten(5).flatten(3, 4)  # (B, C, 1, H, W)
        mean, std = latent_statistics(vae, unpacked)
        output = vae.decode((unpacked * std + mean).to(vae.dtype), return_dict=False)[0][:, :, 0]
        return self._pipeline.image_processor.postprocess(output.float(), output_type="pt")

    def sigmas(self, steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the scheduler's own noise levels (steps + 1,) on the CPU, with its fixed shift for every size."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1 with this model's scheduler, not {steps}")
        scheduler = self._pipeline.scheduler
        scheduler.set_timesteps(steps)
        return scheduler.sigmas.float().cpu().clone()

    def timestep(self, timesteps: Tensor) -> Tensor:
        """Return the scheduler's timesteps (B,), float32, which the transformer takes as they are."""
        return timesteps

    def transform(self, tokens: Sequence[Tensor], timestep: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Compute the transformer's output (B, tokens, channels), the image's tokens first."""
        joined = torch.cat(tuple(tokens), dim=1)
        patches = joined.reshape(*joined.shape[:2], -1, 1, self._patch, self._patch)
        output: Tensor = self._transformer(hidden_states=patches, timestep=timestep, return_dict=False, **inputs)[0]
        return output.flatten(2)

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """Return prompt embeddings and the grids of image and references."""
        prompt = rows["prompt_embeds"]
        return {"encoder_hidden_states": prompt, "shape_list": [[(1, *grid) for grid in grids]] * len(prompt)}

    def guided(self, conditional: Tensor, negative: Tensor) -> Tensor:
        """Apply classifier-free guidance, and rescale each latent pixel to the norm of the conditional velocity."""
        shape = (*conditional.shape[:-1], self._transformer.config.in_channels, -1)
        pixels, own = super().guided(conditional, negative).reshape(shape), conditional.reshape(shape)
        scale = own.norm(dim=-2, keepdim=True) / pixels.norm(dim=-2, keepdim=True).clamp_min(1e-6)
        return (pixels * scale).flatten(-2)
