"""UNO (arXiv 2504.02160) as a policy: FLUX.1 with references as further tokens.

Without references, its Euler rollouts are images of `FluxPipeline`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.policies.adapters import Terms, adapter_file, fitting
from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.hooks import PATCH, Grid, nearest_size
from customized_grpo.utils.hub import ModelError, first_line

#: Longer side of a reference in pixels in UNO's own inference: of a single one, and of several.
_ALONE, _SEVERAL = 512, 320


class UnoPolicy(FluxPolicy):
    """The transformer of a `FluxPipeline` with UNO's LoRA.

    `config.adapter` is UNO's dit_lora.safetensors; null is for a transformer that already takes
    references. `config.adapter_as` is one of

    - fused: it is added to the weights before they are quantised, and training changes another LoRA on top. To use what
      `save` writes with the stock pipeline, load both files by `load_lora_weights` and `set_adapters` with weights 1.
    - start: the trained LoRA starts as it, and needs at least its rank (512). What `save` writes then stands alone. The
      untuned model, which KL is measured to, is that of the file.

    References, of which there may be none, are resized to the nearest in shape of `config.reference_sizes`. If that is
    null, UNO's own rule applies: the longer side becomes 512 pixels, or 320 of several references, and they are cropped
    about the centre to whole tokens. Two things differ from UNO's code. A reference's latents are the mean of the VAE's
    distribution, not a random sample. The shift of noise levels is that of `FluxPipeline`, by the number of the image's
    tokens, where UNO's code takes 1/64 of it: at 512 x 512 `rollout.shift` 1.583 gives UNO's levels.
    """

    pipelines = (FluxPipeline,)

    def adapter_terms(self, transformer: nn.Module, path: str) -> Terms:
        """Return UNO's LoRA by layer."""
        return uno_lora_by_layer(transformer, path)

    def encode_reference(self, image: Image.Image, count: int) -> Tensor:
        """Resize or crop a reference, and encode it to tokens (1, rows, columns, channels)."""
        processor, multiple = self._pipeline.image_processor, self._pipeline.vae_scale_factor * PATCH
        if self._config.reference_sizes is None:
            image = self._crop(image, _ALONE if count == 1 else _SEVERAL)
        else:
            size = nearest_size(image.height, image.width, self._config.reference_sizes)
            height, width = (multiple * length for length in self._tokens_of("policy.reference_sizes", *size))
            image = processor.resize(self._cropped(image, height, width), height, width)
        vae = self._pipeline.vae
        pixels = processor.preprocess(image, image.height, image.width).to(self._device, vae.dtype)
        latents = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        packed = self._pipeline._pack_latents(latents, 1, *latents.shape[1:])
        return packed.to(self._dtype).reshape(1, image.height // multiple, image.width // multiple, -1)

    def _crop(self, image: Image.Image, longer: int) -> Image.Image:
        """Resize an image to that longer side and crop it about its centre to whole tokens."""
        scale = longer / max(image.size)
        # Floored as in UNO's code, except for the longer side, which rounding could make one pixel less.
        width, height = (longer if side == max(image.size) else int(scale * side) for side in image.size)
        rows, columns = self._tokens_of("policy.reference_sizes is null, so a reference", height, width)
        multiple = self._pipeline.vae_scale_factor * PATCH
        left, top = (width - columns * multiple) // 2, (height - rows * multiple) // 2
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
        return resized.crop((left, top, left + columns * multiple, top + rows * multiple))

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return UNO's position ids (tokens, 3) of image and references."""
        return position_ids(grids)


def position_ids(grids: Sequence[Grid]) -> Tensor:
    """Return UNO's position ids, float32 (tokens, 3), of the grids of image and references ("pe='d'").

    The grids stand on one diagonal: rows and columns of each begin where those of the one before it end.
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


_KEY = re.compile(
    r"(double_blocks\.\d+\.processor\.(qkv|proj)_lora[12]|single_blocks\.\d+\.processor\.(qkv|proj)_lora)"
    r"\.(down|up)\.weight"
)


def uno_lora_by_layer(transformer: Any, path: str | Path) -> Terms:
    """Return UNO's LoRA as (down (rank, inputs), up (outputs, rank)) by layer. Raises ModelError if it does not fit.

    Its keys, in BFL's layout, are {double,single}_blocks.I.processor.PART.{down,up}.weight; PART is qkv_lora1,
    proj_lora1 (image), qkv_lora2, proj_lora2 (text), or in single blocks qkv_lora, proj_lora. There is no alpha. A file
    may lack blocks or parts.
    """
    path = adapter_file(path)
    where = f"policy.adapter: {path}"
    try:
        saved = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{where}: not a safetensors file ({first_line(error)}); download it again") from error
    if not saved:
        raise ModelError(f"{where}: holds no weights; give UNO's dit_lora.safetensors")
    for key, weight in saved.items():
        if not (match := _KEY.fullmatch(key)):
            raise ModelError(f"{where}: {key} is no key of UNO's LoRA; give its dit_lora.safetensors")
        other = f"{match[1]}.{'up' if match[4] == 'down' else 'down'}.weight"
        if other not in saved:
            raise ModelError(f"{where}: has {key} but lacks {other}; download it again")
        if not weight.isfinite().all():
            raise ModelError(f"{where}: {key} holds values that are not finite; download it again")
        if weight.ndim != 2 or (".qkv_" in key and match[4] == "up" and len(weight) % 3):
            raise ModelError(f"{where}: {key} has shape {tuple(weight.shape)}; give UNO's dit_lora.safetensors")
    converted = FluxPipeline.lora_state_dict(saved)
    halves = {name.removeprefix("transformer."): weight for name, weight in converted.items()}
    names = [name.removesuffix(".lora_A.weight") for name in halves if name.endswith(".lora_A.weight")]
    found = {name: (halves[f"{name}.lora_A.weight"], halves[f"{name}.lora_B.weight"]) for name in names}
    return fitting(transformer, found, where)
