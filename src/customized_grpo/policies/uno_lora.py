"""UNO's released LoRA, in BFL's layout, on the layers of diffusers' `FluxTransformer2DModel`.

Its keys are {double,single}_blocks.I.processor.PART.{down,up}.weight; PART is qkv_lora1, proj_lora1 (image), qkv_lora2,
proj_lora2 (text), or in single blocks qkv_lora, proj_lora. There is no alpha. A file may lack blocks or parts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusers import FluxPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

from customized_grpo.policies.adapters import Terms, adapter_file, fitting
from customized_grpo.utils.hub import ModelError, first_line

_KEY = re.compile(
    r"(double_blocks\.\d+\.processor\.(qkv|proj)_lora[12]|single_blocks\.\d+\.processor\.(qkv|proj)_lora)"
    r"\.(down|up)\.weight"
)


def uno_lora_by_layer(transformer: Any, path: str | Path) -> Terms:
    """Return UNO's LoRA as (down (rank, inputs), up (outputs, rank)) by layer. Raises ModelError if it does not fit."""
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
