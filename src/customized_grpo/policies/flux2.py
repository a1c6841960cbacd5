"""FLUX.2 as a policy; its Euler rollouts are images of `Flux2KleinPipeline` (klein) and `Flux2Pipeline` (dev)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2 import pipeline_flux2 as flux2
from PIL import Image
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.hooks import ATTENTION, Grid, nearest_size
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.utils.hub import ModelError

_LARGEST_AREA = 1024 * 1024  # the pipelines shrink larger references to it


class Flux2Policy(PipelinePolicy):
    """The transformer of a `Flux2KleinPipeline` or `Flux2Pipeline`.

    References, of which there may be none, are resized to the nearest in shape of `config.reference_sizes`, or keep
    their size if that is null. Then the pipeline's own steps follow: shrinking to 1024 x 1024 pixels in area, cropping
    to whole tokens, position ids of 10 * k for the k-th.

    `Conditions.rows` holds prompt_embeds (B, T, D) and for each reference its tokens on their grid, (B, rows, columns,
    channels). The model's chat template, which is long for dev, counts towards `config.max_sequence_length`.

    A klein base model takes classifier-free guidance: `config.true_cfg` is its pipeline's guidance_scale. The others
    are distilled and refuse it. `config.guidance` is an input of dev, and has no effect on klein.
    """

    pipelines: ClassVar[tuple[Any, ...]] = (Flux2KleinPipeline, Flux2Pipeline)
    lora_targets = (
        *ATTENTION, "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
        "to_qkv_mlp_proj", "to_out",
    )  # fmt: skip
    example_call = (
        "image=[reference],\n    guidance_scale={guidance},  # of FLUX.2 dev; klein: {true_cfg}\n"
        "    max_sequence_length={tokens},"
    )

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        super().__init__(config, pipeline)
        self._prompts_fit = False
        self._dev = isinstance(self._pipeline, Flux2Pipeline)
        if config.true_cfg != 1 and (self._dev or self._pipeline.config.get("is_distilled", True)):
            remedy = "set policy.guidance instead" if self._dev else "give a base model, such as FLUX.2-klein-base-4B"
            raise ModelError(f"policy.true_cfg: {config.path} is distilled to do without; leave it at 1, or {remedy}")

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode a prompt to prompt_embeds (1, T, D). Raises ModelError if the chat template leaves no place for it."""
        embeds = self._embed(prompt)
        if prompt and not self._prompts_fit:
            if torch.equal(embeds, self._embed("")):
                raise ModelError(
                    f"policy.max_sequence_length: {self._config.max_sequence_length} tokens do not reach past "
                    f"the chat template of this model; give {self._pipeline.tokenizer_max_length}"
                )
            self._prompts_fit = True
        return {"prompt_embeds": embeds}

    def _embed(self, prompt: str) -> Tensor:
        """Embed one prompt in its chat template, (1, T, D)."""
        embeds, _ = self._pipeline.encode_prompt(
            prompt, device=self._device, max_sequence_length=self._config.max_sequence_length
        )
        return embeds.to(self._dtype)

    def prompt_tokens(self, prompts: Sequence[str]) -> tuple[list[int], int]:
        """Return the number of tokens of each prompt in its chat template, and the number that is read."""
        tokenizer = self._pipeline.tokenizer
        if self._dev:
            chats = flux2.format_input(list(prompts), system_message=self._pipeline.system_message)
            lengths = [len(tokenizer.apply_chat_template([chat], tokenize=True)[0]) for chat in chats]
        else:
            chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
            form = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
            texts = [tokenizer.apply_chat_template(chat, **form) for chat in chats]
            lengths = list(map(len, tokenizer(texts, verbose=False)["input_ids"]))
        return lengths, self._config.max_sequence_length

    def decode_latents(self, latents: Tensor, grid: Grid) -> Tensor:
        """Decode packed latents (B, tokens, channels) on a grid to images, float32 (B, 3, H, W) in [0, 1]."""
        pipeline, vae = self._pipeline, self._pipeline.vae
        packed = latents.to(self._device, self._dtype)
        patches = pipeline._unpack_latents_with_ids(packed, self._image_ids((grid,)).expand(len(packed), -1, -1))
        # The pipelines undo the VAE's batch norm in their __call__, by the same operations.
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(patches)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(patches)
        output = vae.decode(pipeline._unpatchify_latents(patches * deviation + mean), return_dict=False)[0]
        return pipeline.image_processor.postprocess(output, output_type="pt").float()

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """Return prompt embeddings, position ids and, for a dev model, the guidance scale."""
        prompt = rows["prompt_embeds"]
        guidance = torch.full((len(prompt),), self._config.guidance, device=self._device) if self._dev else None
        return {
            "guidance": guidance,
            "encoder_hidden_states": prompt,
            "txt_ids": self._pipeline._prepare_text_ids(prompt[:1]).to(self._device),
            "img_ids": self._image_ids(grids),
        }

    def shift(self, steps: int, tokens: int) -> float:
        """Return the scheduler's mu for these numbers of steps and image tokens, by the pipeline's empirical fit."""
        return flux2.compute_empirical_mu(tokens, steps)

    def encode_reference(self, image: Image.Image, count: int) -> Tensor:
        """Resize, crop and encode a reference to tokens (1, rows, columns, channels)."""
        processor, multiple = self._pipeline.image_processor, self.token_pixels
        if self._config.reference_sizes is not None:
            height, width = nearest_size(image.height, image.width, self._config.reference_sizes)
            image = processor.resize(self._cropped(image, height, width), height, width)
        else:
            try:
                processor.check_image_input(image)
            except ValueError as error:
                raise ModelError(f"a reference: {error}; set policy.reference_sizes to resize it") from None
        image = processor._resize_if_exceeds_area(image, _LARGEST_AREA)
        rows, columns = self._tokens_of("policy.reference_sizes", image.height, image.width)
        pixels = processor.preprocess(image, height=rows * multiple, width=columns * multiple, resize_mode="crop")
        latents = self._pipeline._encode_vae_image(pixels.to(self._device, self._pipeline.vae.dtype), generator=None)
        return self._pipeline._pack_latents(latents).to(self._dtype).reshape(1, rows, columns, -1)

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return position ids (1, tokens, 4) of image and references."""
        image, *references = [torch.empty(1, 1, rows, columns) for rows, columns in grids]
        ids = [self._pipeline._prepare_latent_ids(image)]
        if references:
            ids.append(self._pipeline._prepare_image_ids(references))
        return torch.cat(ids, dim=1)
