"""Read the settings of a LoRA from its file, to build a policy for it."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open

from customized_grpo.config import LoraConfig
from customized_grpo.utils.hub import ModelError, first_line

_PREFIX, _A = "transformer.", ".lora_A.weight"


def lora_file(path: Path) -> Path:
    """Return the file of a LoRA: `path` itself, or the one with diffusers' name in the folder `path`."""
    return path if path.is_file() or path.suffix == ".safetensors" else path / LORA_WEIGHT_NAME_SAFE


def lora_settings(path: Path) -> LoraConfig:
    """Return rank, alpha and targets of a LoRA of a transformer in diffusers' form, a file or its folder.

    If the file has no alpha, it is the rank, as diffusers reads it.

    Raises:
        ModelError: It is no such file.
    """
    file = lora_file(path)
    try:
        with safe_open(file, framework="pt") as weights:
            ranks = {
                name.removeprefix(_PREFIX).removesuffix(_A): int(weights.get_slice(name).get_shape()[0])
                for name in weights.keys()  # noqa: SIM118 - the file is no mapping
                if name.startswith(_PREFIX) and name.endswith(_A)
            }
            text = (weights.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
        alpha = (json.loads(text) if text else {}).get(f"{_PREFIX}lora_alpha")
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{file}: not a LoRA in safetensors ({first_line(error)}); give another file") from error
    if not ranks:
        raise ModelError(f"{file}: no LoRA of a transformer in diffusers' form (transformer.NAME{_A}); convert it")
    if len(set(ranks.values())) > 1:
        raise ModelError(f"{file}: its layers have ranks {min(ranks.values())} to {max(ranks.values())}; one is needed")
    rank = next(iter(ranks.values()))
    return LoraConfig(rank=rank, alpha=float(rank if alpha is None else alpha), targets=sorted(ranks))
