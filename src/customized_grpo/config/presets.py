"""Defaults that depend on the model.

A preset's value holds where neither a file nor `--set` names its key. The preset is chosen by `policy.kind` and, where
a kind has several models, by a pattern of `policy.path`. LoRA targets are in the file of each model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Values by dotted key, and the name of the model they are for."""

    model: str
    values: Mapping[str, Any]

    def section(self, name: str) -> dict[str, Any]:
        """The values of one section, by key without its name."""
        start = f"{name}."
        return {key.removeprefix(start): value for key, value in self.values.items() if key.startswith(start)}


#: Of every model, unless its own values below differ.
_COMMON: Mapping[str, Any] = {
    "policy.height": 1024,  # all pipelines: default_sample_size 128 times vae_scale_factor 8
    "policy.width": 1024,
    "policy.reference_sizes": None,  # all pipelines have a rule of their own, near 1024 x 1024 pixels
    "policy.max_sequence_length": 512,  # max_sequence_length of all pipelines
    "policy.guidance": 3.5,  # guidance_scale of FluxPipeline
    "policy.true_cfg": 1.0,  # true_cfg_scale of FluxPipeline and FluxKontextPipeline
    "policy.negative_prompt": "",
    "policy.lora.rank": 64,  # the paper's 512 would take 54 GB on 20 billion parameters
    "rollout.shift": None,  # the rule of the model's own scheduler
    "evaluation.steps": 25,  # the paper
}

#: By policy.kind: (model, pattern of policy.path, what differs). The first match holds; the last matches any path.
_MODELS: Mapping[str, Sequence[tuple[str, str, Mapping[str, Any]]]] = {
    "flux-kontext": [
        (
            "FLUX.1-Kontext-dev",
            "",
            {
                "policy.guidance": 2.5,  # the model card, where its pipeline's default is FLUX.1-dev's 3.5
                "policy.lora.rank": 128,  # fits 80 GB without offloading, which 512, the paper's, does not
            },
        )
    ],
    "uno": [
        (
            "FLUX.1-dev with UNO",
            "",
            {
                "policy.height": 512,  # the paper, and the size that UNO was trained at
                "policy.width": 512,
                "policy.lora.rank": 512,  # the paper
                "rollout.shift": 3.0,  # the paper
            },
        )
    ],
    "flux2": [
        (
            "FLUX.2-klein-base",
            "klein-base",
            {
                "policy.true_cfg": 4.0,  # guidance_scale of Flux2KleinPipeline
                "policy.lora.rank": 128,
            },
        ),
        (
            "FLUX.2-klein",
            "klein",
            {
                "policy.lora.rank": 128,
                "evaluation.steps": 4,  # the model card; it is distilled to 4 steps
            },
        ),
        ("FLUX.2-dev", "", {"policy.guidance": 4.0}),  # guidance_scale of Flux2Pipeline
    ],
    "qwen-image-edit": [
        (
            "Qwen-Image-Edit",
            "",
            {
                "policy.true_cfg": 4.0,  # true_cfg_scale of QwenImageEditPlusPipeline
                "policy.negative_prompt": " ",  # the model card; without one the pipeline leaves guidance out
            },
        )
    ],
}

_OWN = Preset("a class of your own", _COMMON)

#: The model where none is named, and its preset's values.
KIND, PATH = "flux-kontext", "black-forest-labs/FLUX.1-Kontext-dev"


def preset_of(policy: object) -> Preset:
    """The preset for a `PolicyConfig`, or for the values that one is to be made from."""
    values = policy if isinstance(policy, Mapping) else getattr(policy, "__dict__", {})
    for model, pattern, differences in _MODELS.get(str(values.get("kind", KIND)), ()):
        if re.search(pattern, str(values.get("path", PATH)), re.IGNORECASE):
            return Preset(model, {**_COMMON, **differences})
    return _OWN


def presets() -> Iterator[Preset]:
    """All presets, in the order of `policy.kind`."""
    for models in _MODELS.values():
        yield from (Preset(model, {**_COMMON, **differences}) for model, _, differences in models)
    yield _OWN


def fill(values: Any, preset: Mapping[str, Any]) -> Any:
    """A mapping with the preset's values at the dotted keys that it does not name; anything else as it is."""
    if not isinstance(values, Mapping):
        return values
    filled = dict(values)
    for key, value in preset.items():
        first, _, rest = key.partition(".")
        filled[first] = fill(filled.get(first, {}), {rest: value}) if rest else filled.get(first, value)
    return filled


DEFAULT: Mapping[str, Any] = preset_of({}).values
