"""Qwen-Image-Edit-2509 and -2511 (arXiv 2508.02324) as a policy of `QwenImageEditPlusPipeline`."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.hooks import ATTENTION, Grid, latent_statistics, nearest_size
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.utils.hub import ModelError


class QwenImageEditPolicy(PipelinePolicy):
    """The transformer of a `QwenImageEditPlusPipeline`.

    References, at least one, go to the text encoder at the pipeline's own size, and to the transformer as tokens of the
    VAE: at the nearest in shape of `config.reference_sizes`, else at the pipeline's own size (about 1024x1024 pixels).

    `Conditions.rows` holds prompt_embeds (B, T, D), T varying with prompt and references, and for each reference its
    tokens on their grid, (B, rows, columns, channels). `config.true_cfg` is classifier-free guidance (the pipeline's
    scale is 4); `config.guidance` and `config.max_sequence_length` have no effect.

    The text encoder is given which tokens are of an image (mm_token_type_ids). diffusers up to 0.42 does not pass it,
    and recent releases of transformers 5 then number image tokens like text (diffusers issue 14194).
    """

    pipelines = (QwenImageEditPlusPipeline,)
    #: Those of the last block that only change its text tokens get no gradient.
    lora_targets = (*ATTENTION, "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    example_call = "image=[reference],\n    true_cfg_scale={true_cfg},"
    example_guidance = "\n    negative_prompt={negative!r},"

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        if self._transformer.config.guidance_embeds:
            raise ModelError(
                f"policy.path: {config.path} is guidance-distilled, which policy.kind qwen-image-edit is not; "
                f"give Qwen-Image-Edit-2509 or -2511"
            )

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode a prompt with its references to prompt_embeds (1, T, D). ModelError if there is no reference."""
        if not references:
            raise ModelError(f"a QwenImageEditPlusPipeline needs a reference image; give one to the prompt {prompt!r}")
        seen = []
        for image in references:
            width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, image.width / image.height)
            seen.append(self._pipeline.image_processor.resize(image, height, width))
        hook = self._pipeline.text_encoder.register_forward_pre_hook(_with_token_types, with_kwargs=True)
        with hook:
            embeds, _ = self._pipeline.encode_prompt(prompt, image=seen, device=self._device)
        return {"prompt_embeds": embeds.to(self._dtype)}

    def decode_latents(self, latents: Tensor, grid: Grid) -> Tensor:
        """Decode packed latents (B, tokens, channels) on a grid to images, float32 (B, 3, H, W) in [0, 1]."""
        pipeline, vae = self._pipeline, self._pipeline.vae
        height, width = (side * self.token_pixels for side in grid)
        latents = latents.to(self._device, self._dtype)
        unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        mean, std = latent_statistics(vae, unpacked)
        # Divided by the inverse, as the pipeline does: the same bits in half precision too.
        output = vae.decode(unpacked / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
        return pipeline.image_processor.postprocess(output, output_type="pt").float()

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """Return prompt embeddings and the grids of image and references."""
        prompt = rows["prompt_embeds"]
        return {"encoder_hidden_states": prompt, "img_shapes": [[(1, *grid) for grid in grids]] * len(prompt)}

    def guided(self, conditional: Tensor, negative: Tensor) -> Tensor:
        """Apply classifier-free guidance, and rescale each token's velocity to the norm of the conditional one."""
        guided = super().guided(conditional, negative)
        return guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def encode_reference(self, image: Image.Image, count: int) -> Tensor:
        """Resize and encode a reference to tokens (1, rows, columns, channels)."""
        if self._config.reference_sizes is None:
            width, height = plus.calculate_dimensions(plus.VAE_IMAGE_SIZE, image.width / image.height)
        else:
            height, width = nearest_size(image.height, image.width, self._config.reference_sizes)
        rows, columns = self._tokens_of("policy.reference_sizes", height, width)
        height, width = rows * self.token_pixels, columns * self.token_pixels
        image = self._cropped(image, height, width)
        pixels = self._pipeline.image_processor.preprocess(image, height, width).unsqueeze(2)
        latents = self._pipeline._encode_vae_image(pixels.to(self._device, self._dtype), generator=None)
        channels, _, *sides = latents.shape[1:]
        return self._pipeline._pack_latents(latents, 1, channels, *sides).to(self._dtype).reshape(1, rows, columns, -1)


def _with_token_types(text_encoder: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Add mm_token_type_ids (1 for tokens of an image), where the text encoder takes them and the pipeline has none."""
    if "mm_token_type_ids" in signature(text_encoder.forward).parameters and "mm_token_type_ids" not in kwargs:
        kwargs["mm_token_type_ids"] = (kwargs["input_ids"] == text_encoder.config.image_token_id).int()
    return args, kwargs
