"""UNO (arXiv 2504.02160) as a policy: FLUX.1 with references as further tokens.

Without references, its Euler rollouts are images of `FluxPipeline`.
"""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from customized_grpo.policies.adapters import Terms, adapter_file, adapter_terms, reading
from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.hooks import Grid, nearest_size
from customized_grpo.utils.hub import ModelError

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
        sizes = self._config.reference_sizes
        if sizes is None:
            return self._encode_tokens(self._crop(image, _ALONE if count == 1 else _SEVERAL))
        return self._encode_tokens(self._resized(image, *nearest_size(image.height, image.width, sizes)))

    def _crop(self, image: Image.Image, longer: int) -> Image.Image:
        """Resize an image to that longer side and crop it about its centre to whole tokens."""
        scale = longer / max(image.size)
        # Floored as in UNO's code, except for the longer side, which rounding could make one pixel less.
        width, height = (longer if side == max(image.size) else int(scale * side) for side in image.size)
        grid = self._tokens_of("policy.reference_sizes is null, so a reference", height, width)
        rows, columns = (self.token_pixels * side for side in grid)
        left, top = (width - columns) // 2, (height - rows) // 2
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
        return resized.crop((left, top, left + columns, top + rows))

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
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
    with reading(where), safe_open(path, framework="pt") as file:
        keys = set(file.keys())
    if not keys:
        raise ModelError(f"{where}: holds no weights; give UNO's dit_lora.safetensors")
    for key in sorted(keys):
        if not (match := _KEY.fullmatch(key)):
            raise ModelError(f"{where}: {key} is no key of UNO's LoRA; give its dit_lora.safetensors")
        other = f"{match[1]}.{'up' if match[4] == 'down' else 'down'}.weight"
        if other not in keys:
            raise ModelError(f"{where}: has {key} but lacks {other}; download it again")
    return adapter_terms(transformer, FluxPipeline, path)
