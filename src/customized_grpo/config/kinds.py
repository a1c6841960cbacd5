"""Registry of policies: class, pipelines and presets of each kind. A built-in model is one file and an entry here.

Nothing here imports torch, so that a configuration is read at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Defaults of a model: its name, and values that differ from `presets.COMMON`, by dotted key.

    `path` is a regular expression that is searched in `policy.path`, whatever its case; "" matches any path.
    """

    model: str
    values: Mapping[str, Any]
    path: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of policy: its class or `module:Class`, the names of the pipelines that it loads, presets of its models.

    The module is within `customized_grpo.policies`. The first preset that matches `policy.path` is used.
    """

    policy: type | str
    pipelines: tuple[str, ...]
    presets: tuple[Preset, ...] = ()


_KONTEXT = Preset(
    "FLUX.1-Kontext-dev",
    {
        "policy.guidance": 2.5,  # model card; the pipeline's default is FLUX.1-dev's 3.5
        "policy.lora.rank": 128,  # fits 80 GB without offloading; the paper's 512 does not
    },
)
_UNO = Preset(
    "FLUX.1-dev with UNO",
    {
        "policy.height": 512,  # the paper, and the size that UNO was trained at
        "policy.width": 512,
        "policy.lora.rank": 512,  # the paper
        "rollout.shift": 3.0,  # the paper
    },
)
_FLUX2_BASE = Preset(
    "FLUX.2-klein-base",
    {
        "policy.true_cfg": 4.0,  # guidance_scale of Flux2KleinPipeline
        "policy.lora.rank": 128,
        "rollout.steps": 28,  # model card of FLUX.2-dev: a good trade-off for the pipeline's 50
        "evaluation.steps": 28,
    },
    path="klein-base",
)
_FLUX2_DEV = Preset("FLUX.2-dev", {"policy.guidance": 4.0})  # guidance_scale of Flux2Pipeline
#: Distilled to 4 steps without guidance, by the model card and the defaults of Flux2KleinKVPipeline.
_KLEIN = {"policy.lora.rank": 128, "rollout.steps": 4, "evaluation.steps": 4}
_QWEN = Preset(
    "Qwen-Image-Edit",
    {
        "policy.true_cfg": 4.0,  # true_cfg_scale of QwenImageEditPlusPipeline
        "policy.negative_prompt": " ",  # model card; without one the pipeline omits guidance
    },
)
_LONGCAT = Preset(
    "LongCat-Image-Edit",  # Apache 2.0, of its model card; other values are the common ones
    {
        "policy.true_cfg": 4.5,  # guidance_scale of LongCatImageEditPipeline, whose negative prompt is ""
        "evaluation.steps": 50,  # num_inference_steps of LongCatImageEditPipeline
    },
)
_JOY = Preset(
    "JoyAI-Image-Edit-Plus",  # Apache 2.0, of its model card; other values are the common ones
    {
        "policy.max_sequence_length": 4096,  # max_sequence_length of JoyImageEditPlusPipeline
        "policy.true_cfg": 4.0,  # guidance_scale of JoyImageEditPlusPipeline
        "policy.negative_prompt": " ",  # of JoyImageEditPlusPipeline where none is given
        "evaluation.steps": 30,  # num_inference_steps of JoyImageEditPlusPipeline
    },
)

#: By `policy.kind`; `customized_grpo.register_policy` adds to it.
KINDS: dict[str, Kind] = {
    "flux-kontext": Kind("flux_kontext:FluxKontextPolicy", ("FluxKontextPipeline",), (_KONTEXT,)),
    "uno": Kind("uno:UnoPolicy", ("FluxPipeline",), (_UNO,)),
    "flux2": Kind(
        "flux2:Flux2Policy",
        ("Flux2KleinPipeline", "Flux2Pipeline"),
        (_FLUX2_BASE, Preset("FLUX.2-klein", _KLEIN, path="klein"), _FLUX2_DEV),
    ),
    "flux2-klein-kv": Kind("flux2_kv:Flux2KVPolicy", ("Flux2KleinKVPipeline",), (Preset("FLUX.2-klein-kv", _KLEIN),)),
    "qwen-image-edit": Kind("qwen_image_edit:QwenImageEditPolicy", ("QwenImageEditPlusPipeline",), (_QWEN,)),
    "longcat-image-edit": Kind("longcat_image_edit:LongCatImageEditPolicy", ("LongCatImageEditPipeline",), (_LONGCAT,)),
    "joyimage-edit-plus": Kind("joyimage_edit_plus:JoyImageEditPlusPolicy", ("JoyImageEditPlusPipeline",), (_JOY,)),
}
#: The built-in kinds.
POLICIES = tuple(KINDS)
