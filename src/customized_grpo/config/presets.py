"""Defaults that depend on the model, for keys that neither a file nor `--set` names; see `kinds.KINDS`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from customized_grpo.config.kinds import KINDS, Preset

#: Of every model, unless its preset has another value.
COMMON: Mapping[str, Any] = {
    "policy.height": 1024,  # all pipelines: default_sample_size 128 times vae_scale_factor 8
    "policy.width": 1024,
    "policy.reference_sizes": None,  # all pipelines have their own rule, near 1024 x 1024 pixels
    "policy.max_sequence_length": 512,  # max_sequence_length of all pipelines
    "policy.guidance": 3.5,  # guidance_scale of FluxPipeline
    "policy.true_cfg": 1.0,  # true_cfg_scale of FluxPipeline and FluxKontextPipeline
    "policy.negative_prompt": "",
    "policy.lora.rank": 64,  # the paper's 512 would take 54 GB on 20 billion parameters
    "rollout.steps": 25,  # the paper
    "rollout.shift": None,  # the rule of the model's own scheduler
    "evaluation.steps": 25,  # the paper
}
#: Of every objective but GRPO, which trains on noised copies of sampled images; of some, other values.
_FORWARD: Mapping[str, Any] = {
    "rollout.shared_noise": False,  # deterministic steps from one noise would give one image
    "train.updates": 1,  # AWM's on-policy setting; there is no ratio that corrects a second update
    "method.advantage_clip": 1.0,  # AWM in Flow-Factory
}
_OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "nft": {
        "forward.pull": 0.0,  # the old policy is part of the objective
        "forward.old_decay": 0.7,  # and where it starts from, so that it must keep up
        "forward.scale": "x0",  # DiffusionNFT
    },
}
_OTHER = Preset("a class of your own", COMMON)

#: The model where none is named.
KIND, PATH = "flux-kontext", "black-forest-labs/FLUX.1-Kontext-dev"


def preset_of(policy: object) -> Preset:
    """Return the preset, with all its values, for a `PolicyConfig` or for the values to make one from."""
    values = policy if isinstance(policy, Mapping) else getattr(policy, "__dict__", {})
    kind = KINDS.get(str(values.get("kind", KIND)))
    for preset in kind.presets if kind else ():
        if re.search(preset.path, str(values.get("path", PATH)), re.IGNORECASE):
            return _whole(preset)
    return _OTHER


def presets() -> Iterator[Preset]:
    """Yield all presets, with all their values, in the order of `policy.kind`."""
    for kind in KINDS.values():
        yield from map(_whole, kind.presets)
    yield _OTHER


def objective_defaults(method: object) -> Mapping[str, Any]:
    """Return the defaults of an objective for a `MethodConfig` or for the values to make one from."""
    values = method if isinstance(method, Mapping) else getattr(method, "__dict__", {})
    name = str(values.get("objective", "grpo"))
    return {} if name == "grpo" else {**_FORWARD, **_OBJECTIVES.get(name, {})}


def values_of(defaults: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return the values of one section, by key without its name."""
    start = f"{section}."
    return {key.removeprefix(start): value for key, value in defaults.items() if key.startswith(start)}


def fill(values: Any, preset: Mapping[str, Any]) -> Any:
    """Return a mapping with the preset's values at the dotted keys that it lacks; anything else as it is."""
    if not isinstance(values, Mapping):
        return values
    filled = dict(values)
    for key, value in preset.items():
        first, _, rest = key.partition(".")
        filled[first] = fill(filled.get(first, {}), {rest: value}) if rest else filled.get(first, value)
    return filled


def _whole(preset: Preset) -> Preset:
    return replace(preset, values={**COMMON, **preset.values})


DEFAULT: Mapping[str, Any] = preset_of({}).values
