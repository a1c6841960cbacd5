"""LongCat-Image-Edit (arXiv 2512.07584) as a policy of `LongCatImageEditPipeline`."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import LongCatImageEditPipeline
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat
from PIL import Image
from torch import Tensor

from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.hooks import Grid, nearest_size
from customized_grpo.policies.qwen_image_edit import _with_token_types
from customized_grpo.utils.hub import ModelError

_AREA = 1024 * 1024  # of the pipeline's images and references
_PATCH = 28  # pixels of a token of the text encoder's vision tower


class LongCatImageEditPolicy(FluxPolicy):
    """The transformer of a `LongCatImageEditPipeline`, whose blocks and VAE are those of FLUX.1.

    It takes one reference. The text encoder sees it at the pipeline's own size (about 512x512 pixels), and the
    transformer as tokens of the VAE: at the nearest in shape of `config.reference_sizes`, else at the pipeline's own
    size (about 1024x1024 pixels). The pipeline generates images of that size only, the policy of `config.height` and
    `width`.

    `Conditions.rows` holds prompt_embeds (B, T, D) and the reference's tokens on their grid, (B, rows, columns,
    channels). T is `config.max_sequence_length` plus the reference's tokens that the text encoder sees; position ids of
    images start there. `config.true_cfg` is the pipeline's guidance_scale, `config.guidance` has no effect.
    """

    pipelines = (LongCatImageEditPipeline,)
    example_call = "image=reference,\n    guidance_scale={true_cfg},"
    example_guidance = "\n    negative_prompt={negative!r},"
    example_size = ""
    example_load = (
        'pipeline.transformer.load_lora_adapter(LORA, weight_name="pytorch_lora_weights.safetensors")'
        "  # the pipeline has no load_lora_weights"
    )

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode a prompt together with its only reference to prompt_embeds (1, T, D). ModelError if it is too long."""
        if len(references) != 1:
            raise ModelError(
                f"a LongCatImageEditPipeline takes one reference image, not {len(references)}; "
                f"give one to the prompt {prompt!r}"
            )
        width, height = _own_size(references[0])
        resize = self._pipeline.image_processor.resize
        seen = resize(resize(references[0], height, width), height // 2, width // 2)
        self._pipeline.tokenizer_max_length = limit = self._config.max_sequence_length
        try:
            with self._pipeline.text_encoder.register_forward_pre_hook(_with_token_types, with_kwargs=True):
                embeds, _ = self._pipeline.encode_prompt([prompt], image=seen)
        except TypeError as error:  # in diffusers 0.42 from the warning that would announce truncation
            if "has no len()" not in str(error):
                raise
            raise ModelError(
                f"policy.max_sequence_length: the prompt {prompt!r} has more than {limit} tokens; shorten it"
            ) from error
        return {"prompt_embeds": embeds.to(self._dtype)}

    def prompt_tokens(self, prompts: Sequence[str]) -> tuple[list[int], int]:
        """Return the number of tokens of each prompt, whose quotations are read letter by letter, and of those read."""

        def count(prompt: str) -> int:
            parts = longcat.split_quotation(prompt)
            words = [word for text, quoted in parts for word in (text if quoted else [text])]
            return sum(len(self._pipeline.tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words)

        return list(map(count, prompts)), self._config.max_sequence_length

    def prompt_shapes(self, references: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of `encode_prompt`'s row for a square reference, without the batch."""
        seen = round(_AREA**0.5 / 2 / _PATCH) ** 2 + 2  # with the marks of its start and end
        tokens = self._config.max_sequence_length + seen
        return {"prompt_embeds": (tokens, self._transformer.config.joint_attention_dim)}

    def encode_reference(self, image: Image.Image, count: int) -> Tensor:
        """Resize and encode a reference to tokens (1, rows, columns, channels)."""
        sizes = self._config.reference_sizes
        size = _own_size(image)[::-1] if sizes is None else nearest_size(image.height, image.width, sizes)
        return self._encode_tokens(self._resized(image, *size))

    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """Return prompt embeddings and position ids of text and images."""
        prompt = rows["prompt_embeds"]
        length = prompt.shape[1]
        ids = self._image_ids(((1, length), *grids))
        return {"encoder_hidden_states": prompt, "txt_ids": ids[:length], "img_ids": ids[length:]}

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return position ids (tokens, 3) of text, image and reference; the first grid is the text's row of tokens."""
        (_, length), *images = grids
        text = longcat.prepare_pos_ids(0, "text", num_token=length)
        ids = [
            longcat.prepare_pos_ids(k, "image", (length, length), height=rows, width=columns)
            for k, (rows, columns) in enumerate(images, 1)
        ]
        return torch.cat([text, *ids])


def _own_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of the pipeline's images and references for a reference."""
    return longcat.calculate_dimensions(_AREA, image.width / image.height)
