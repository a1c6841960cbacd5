"""Which quantisation a setting means, in the terms of diffusers and of transformers; their packages are extras."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers

from customized_grpo.config import PolicyConfig
from customized_grpo.models import ModelError

_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def quantisation_of(config: PolicyConfig, part: str, library: str) -> Any:
    """What the `from_pretrained` of a pipeline's part takes as its quantization_config; None where there is none.

    int8: weights of linear layers rounded to 8 bits, a scale a row (torchao). nf4: to 4 bits, scales quantised again
    (bitsandbytes, arXiv 2305.14314). Both compute in `config.dtype`.

    Args:
        config: the policy, whose transformer and text encoders may be quantised each in its own way.
        part: the part's name in the pipeline.
        library: whose class it is, diffusers or transformers.

    Raises:
        ModelError: the scheme's package is not installed.
    """
    key = "quantise" if part == "transformer" else "quantise_text_encoders"
    scheme = getattr(config, key) if part == "transformer" or part.startswith("text_encoder") else None
    if scheme is None:
        return None
    package = _PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"policy.{key}: {scheme} needs {package}, which is not installed; pip install {package}")
    made_of: Any = _LIBRARIES[library]
    if scheme == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return made_of.TorchAoConfig(Int8WeightOnlyConfig())
    return made_of.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )


def pipeline_quantisation(config: PolicyConfig, index: Mapping[str, Any]) -> Any:
    """The same for all parts of a pipeline, by its model_index.json."""
    parts = {name: listed[0] for name, listed in index.items() if isinstance(listed, list | tuple)}
    found = {name: quantisation_of(config, name, str(library)) for name, library in parts.items()}
    chosen = {name: one for name, one in found.items() if one is not None}
    return diffusers.PipelineQuantizationConfig(quant_mapping=chosen) if chosen else None
