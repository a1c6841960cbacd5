"""UNO (arXiv 2504.02160) as a policy: FLUX.1 with its references as further tokens, of diffusers' own parts.

Without references a deterministic Euler rollout of it is what `FluxPipeline` draws, and what it saves is what that
pipeline loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.pipelines import PATCH, Grid, nearest_size
from customized_grpo.policies.tuning import LoraTuning
from customized_grpo.policies.uno_lora import adapter_file, fuse_uno_lora, uno_lora_by_layer

#: The longer side of a reference in pixels, in UNO's own inference: where it is the only one, and where not.
ALONE, SEVERAL = 512, 320


class UnoPolicy(FluxPolicy):
    """The transformer of a `FluxPipeline`, with UNO's LoRA, as a `protocols.Policy`.

    `config.adapter` is UNO's dit_lora.safetensors, see `uno_lora`; null leaves the pipeline's own transformer, which
    then should be one that has learnt to look at references. `config.adapter_as` says what becomes of it:

    - fused, it is added to the weights, before these are quantised where they are. The LoRA that training moves is
      another, on top: what `save` writes belongs with that file, and the stock pipeline draws what the policy does
      (without references) where `load_lora_weights` has read both and `set_adapters` weighs both with 1.
    - start: it is where the LoRA that training moves begins, which must have at least its rank (512). What `save`
      writes then stands alone. The untuned model, which KL is measured to, is that of the file.

    References are resized to the nearest in shape of `config.reference_sizes`. Where that is null they go UNO's own
    way: their longer side becomes 512 pixels, or 320 where they are several, and they are cropped about the centre to
    whole tokens. Their position ids are UNO's, see `position_ids`.

    Two things differ from UNO's code. A reference's latents are the mean of what the VAE says, where UNO draws a
    sample: conditions are to be the same in each run. The noise levels' shift is that of `FluxPipeline`, by the number
    of the picture's tokens, where UNO's code takes 1/64 of that number: at 512 x 512 `rollout.shift` 1.583 instead of
    null gives UNO's levels, exp(0.5 + (16 - 256) * 0.65 / 3840).

    Prompts longer than `config.max_sequence_length` tokens (UNO: 512) are cut; references may be none.

    `Conditions.rows` holds prompt_embeds (B, T, D), pooled (B, P), and for each reference its tokens on their grid,
    (B, rows, columns, channels), so that conditions of equal signature have equal position ids.

    Args:
        config: model, adapter, size, precision and what to tune.

    Raises:
        ModelError: the path holds no FluxPipeline in safetensors, the adapter is missing or not UNO's or of another
            size, the picture's size is less than one token, or LoRA targets do not exist.
    """

    pipelines = (FluxPipeline,)

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        if config.device == "meta":  # what has no numbers takes none
            config = config.model_copy(update={"adapter": None})
        if config.adapter is not None:
            adapter_file(config.adapter)  # before the large model is loaded
        super().__init__(config, pipeline)
        if config.adapter is not None and config.adapter_as == "start":
            assert isinstance(self._tuning, LoraTuning)
            self._tuning.start_from(uno_lora_by_layer(self._transformer, config.adapter))

    def preparation(self) -> Callable[[nn.Module], None] | None:
        adapter = self._config.adapter
        if adapter is None or self._config.adapter_as == "start":
            return None
        return lambda transformer: fuse_uno_lora(transformer, adapter)

    def encode_reference(self, picture: Image.Image, count: int) -> Tensor:
        processor, multiple = self._pipeline.image_processor, self._pipeline.vae_scale_factor * PATCH
        sizes = self._config.reference_sizes
        if sizes is None:
            picture = self._crop(picture, ALONE if count == 1 else SEVERAL)
        else:
            rows, columns = self._tokens_of(
                "policy.reference_sizes", *nearest_size(picture.height, picture.width, sizes)
            )
            picture = processor.resize(picture, rows * multiple, columns * multiple)
        vae = self._pipeline.vae
        pixels = processor.preprocess(picture, picture.height, picture.width).to(self._device, vae.dtype)
        latents = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        packed: Tensor = self._pipeline._pack_latents(latents, 1, *latents.shape[1:])
        return packed.to(self._dtype).reshape(1, picture.height // multiple, picture.width // multiple, -1)

    def _crop(self, picture: Image.Image, longer: int) -> Image.Image:
        """The picture with that longer side, then cropped about its centre to whole tokens."""
        scale = longer / max(picture.size)
        # Floored as in UNO's code; but not the longer side, which the quotient's error could make a pixel less.
        width, height = (longer if side == max(picture.size) else int(scale * side) for side in picture.size)
        rows, columns = self._tokens_of("policy.reference_sizes is null, so a reference", height, width)
        multiple = self._pipeline.vae_scale_factor * PATCH
        left, top = (width - columns * multiple) // 2, (height - rows * multiple) // 2
        resized = picture.resize((width, height), Image.Resampling.LANCZOS)
        return resized.crop((left, top, left + columns * multiple, top + rows * multiple))

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        return position_ids(grids)


def position_ids(grids: Sequence[Grid]) -> Tensor:
    """UNO's position ids, float32 (tokens, 3), of a picture's grid of tokens and its references' ("pe='d'").

    The grids stand on one diagonal: rows and columns of each begin where those of the one before it end. The first
    coordinate is 0 for all.
    """
    row = column = 0
    parts = []
    for rows, columns in grids:
        ids = torch.zeros(rows, columns, 3)
        ids[..., 1] = torch.arange(row, row + rows)[:, None]
        ids[..., 2] = torch.arange(column, column + columns)
        parts.append(ids.flatten(0, 1))
        row, column = row + rows, column + columns
    return torch.cat(parts)
