"""The generators that can be tuned. A new one is a file here that implements `protocols.Policy`."""

from __future__ import annotations

from collections.abc import Callable

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.flux2 import Flux2Policy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.policies.qwen_image_edit import QwenImageEditPolicy
from customized_grpo.policies.uno import UnoPolicy
from customized_grpo.protocols import Policy

_KINDS: dict[str, Callable[[PolicyConfig], Policy]] = {
    "flux-kontext": FluxKontextPolicy,
    "flux2": Flux2Policy,
    "qwen-image-edit": QwenImageEditPolicy,
    "uno": UnoPolicy,
}


def build_policy(config: PolicyConfig) -> Policy:
    """The policy that `config.kind` names, loaded and ready to be trained.

    Raises:
        ModelError: the model is missing, or is none of this kind; one line with the remedy.
    """
    return _KINDS[config.kind](config)


__all__ = ["Flux2Policy", "FluxKontextPolicy", "QwenImageEditPolicy", "UnoPolicy", "build_policy"]
