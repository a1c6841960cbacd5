"""The generators that can be tuned. A new one is a file here that implements `protocols.Policy`."""

from __future__ import annotations

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.protocols import Policy

_KINDS = {"flux-kontext": FluxKontextPolicy}


def build_policy(config: PolicyConfig) -> Policy:
    """The policy that `config.kind` names, loaded and ready to be trained.

    Raises:
        ModelError: the model is missing, or is none of this kind; one line with the remedy.
    """
    return _KINDS[config.kind](config)


__all__ = ["FluxKontextPolicy", "build_policy"]
