"""The kinds of policies by name: the one line that a model's file needs outside of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of policy.

    Attributes:
        policy: Its class, or `module:Class` within `customized_grpo.policies`, imported when it is first used.
        pipelines: Names of the diffusers pipelines that it is made of.
    """

    policy: type | str
    pipelines: tuple[str, ...]


#: By `policy.kind`; `customized_grpo.register_policy` adds to it.
KINDS: dict[str, Kind] = {
    "flux-kontext": Kind("flux_kontext:FluxKontextPolicy", ("FluxKontextPipeline",)),
    "uno": Kind("uno:UnoPolicy", ("FluxPipeline",)),
    "flux2": Kind("flux2:Flux2Policy", ("Flux2KleinPipeline", "Flux2Pipeline")),
    "qwen-image-edit": Kind("qwen_image_edit:QwenImageEditPolicy", ("QwenImageEditPlusPipeline",)),
}
#: The built-in kinds.
POLICIES = tuple(KINDS)
