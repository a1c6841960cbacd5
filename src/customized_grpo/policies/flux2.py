"""FLUX.2 as a policy, of diffusers' own parts: the klein models (Qwen3 text encoder) and dev (Mistral3).

A deterministic Euler rollout of it is what the model's own pipeline, `Flux2KleinPipeline` or
`Flux2Pipeline`, draws, and what it saves is what that pipeline loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2 import pipeline_flux2 as flux2
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.pipelines import (
    ATTENTION,
    PATCH,
    Grid,
    PipelinePolicy,
    nearest_size,
)
from customized_grpo.utils.hub import ModelError

#: The linear layers that a LoRA adapts by default: those of attention and MLPs in all blocks.
LORA_TARGETS = (
    *ATTENTION,
    "ff.linear_in",
    "ff.linear_out",
    "ff_context.linear_in",
    "ff_context.linear_out",
    "to_qkv_mlp_proj",
    "to_out",
)

# The pipelines shrink larger references to this area.
_LARGEST_AREA = 1024 * 1024


class Flux2Policy(PipelinePolicy):
    """The transformer of a `Flux2KleinPipeline` or `Flux2Pipeline` as a `protocols.Policy`.

    The k-th reference image, counted from 1, has the pipeline's own position ids: 10 * k as the
    first coordinate (the image to draw has 0). References are first resized to the nearest in shape
    of `config.reference_sizes`; where that is null they keep their size. Then they go the pipeline's
    own way: shrunk to 1024 x 1024 pixels in area where they are larger, and cropped about the centre
    to whole tokens; they may be none. A pipeline refuses references with a side under 64 pixels or of more than 8:1;
    the policy does so where `config.reference_sizes` is null.

    `Conditions.rows` holds prompt_embeds (B, T, D), and for each reference its tokens on their grid,
    (B, rows, columns, channels), so that conditions of equal signature have equal position ids.

    There is one pass of the transformer for one velocity, as the distilled klein models and dev are made for. A klein
    base model has true classifier-free guidance: `config.true_cfg` is its pipeline's guidance_scale, where an empty
    `config.negative_prompt` is its own; 1 is off. The others refuse it. `config.guidance` is an input of
    `Flux2Pipeline`'s transformer, and of no meaning to klein, which has no such input.

    The text of a prompt stands in the model's chat template, which counts towards
    `config.max_sequence_length`; dev's begins with a long system message. The pipelines' own default
    is 512. The layers of the text encoder that make the embeddings, dev's system message, and the
    prompt as it stands (no upsampling) are the pipelines' defaults: there is no setting for them.

    `Flux2Pipeline`'s text processor, a PixtralProcessor, needs torchvision. It is the one part of
    either pipeline that the tests do not build: a tokenizer with dev's call signature stands for it.

    Args:
        config: model, size, precision and what to tune.

    Raises:
        ModelError: the path holds neither pipeline in safetensors, a size is less than one token, LoRA targets do not
            exist, or true classifier-free guidance is asked of a model that does without.
    """

    pipelines = (Flux2KleinPipeline, Flux2Pipeline)
    lora_targets = LORA_TARGETS

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        self._prompts_fit = False
        dev = isinstance(self._pipeline, Flux2Pipeline)
        if config.true_cfg != 1 and (dev or self._pipeline.config.is_distilled):
            remedy = "set policy.guidance instead" if dev else "give a base model, such as FLUX.2-klein-base-4B"
            raise ModelError(f"policy.true_cfg: {config.path} is distilled to do without; leave it at 1, or {remedy}")

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """prompt_embeds (1, T, D), cut to fit `config.max_sequence_length` together with the chat template.

        Raises ModelError where that leaves no room for any prompt.
        """
        embeds = self._embed(prompt)
        if prompt and not self._prompts_fit:
            if torch.equal(embeds, self._embed("")):
                raise ModelError(
                    f"policy.max_sequence_length: {self._config.max_sequence_length} tokens do not reach past "
                    f"the chat template of this model; give {self._pipeline.tokenizer_max_length}"
                )
            self._prompts_fit = True
        return {"prompt_embeds": embeds}

    def decode_latents(self, latents: Tensor) -> Tensor:
        vae = self._pipeline.vae
        packed = latents.to(self._device, self._dtype)
        ids = self._image_ids((self._grid,)).expand(len(packed), -1, -1)
        patches = self._pipeline._unpack_latents_with_ids(packed, ids)
        # The pipelines undo the VAE's batch norm in their __call__ alone, in these very steps.
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(patches)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(patches)
        output = vae.decode(self._pipeline._unpatchify_latents(patches * deviation + mean), return_dict=False)[0]
        pictures: Tensor = self._pipeline.image_processor.postprocess(output, output_type="pt")
        return pictures.float()

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        prompt = rows["prompt_embeds"]
        guidance = None
        if isinstance(self._pipeline, Flux2Pipeline):
            guidance = torch.full((len(prompt),), self._config.guidance, device=self._device)
        return {
            "guidance": guidance,
            "encoder_hidden_states": prompt,
            "txt_ids": self._pipeline._prepare_text_ids(prompt[:1]).to(self._device),
            "img_ids": self._image_ids(grids),
        }

    def shift(self, steps: int) -> float:
        shift: float = flux2.compute_empirical_mu(self.latent_shape[0], steps)
        return shift

    def _embed(self, prompt: str) -> Tensor:
        """Embeddings (1, T, D) of one prompt in its chat template."""
        embeds, _ = self._pipeline.encode_prompt(
            prompt, device=self._device, max_sequence_length=self._config.max_sequence_length
        )
        converted: Tensor = embeds.to(self._dtype)
        return converted

    def encode_reference(self, picture: Image.Image, count: int) -> Tensor:
        processor, multiple = self._pipeline.image_processor, self._pipeline.vae_scale_factor * PATCH
        sizes = self._config.reference_sizes
        if sizes is not None:
            height, width = nearest_size(picture.height, picture.width, sizes)
            picture = processor.resize(picture, height, width)
        else:
            try:
                processor.check_image_input(picture)
            except ValueError as error:
                raise ModelError(f"a reference: {error}; set policy.reference_sizes to resize it") from None
        picture = processor._resize_if_exceeds_area(picture, _LARGEST_AREA)
        rows, columns = self._tokens_of("policy.reference_sizes", picture.height, picture.width)
        height, width = rows * multiple, columns * multiple
        pixels = processor.preprocess(picture, height=height, width=width, resize_mode="crop")
        latents = self._pipeline._encode_vae_image(pixels.to(self._device, self._pipeline.vae.dtype), generator=None)
        packed: Tensor = self._pipeline._pack_latents(latents)
        return packed.to(self._dtype).reshape(1, rows, columns, -1)

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Position ids (1, tokens, 4) of the image and its references, by their grids."""
        image, *references = [torch.empty(1, 1, rows, columns) for rows, columns in grids]
        ids = [self._pipeline._prepare_latent_ids(image)]
        if references:
            ids.append(self._pipeline._prepare_image_ids(references))
        return torch.cat(ids, dim=1)
