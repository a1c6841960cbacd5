"""The generators that can be tuned. A new one is a file here that implements `protocols.Policy`."""

from __future__ import annotations

from collections.abc import Callable

from customized_grpo.config import PolicyConfig
from customized_grpo.models import ModelError
from customized_grpo.named import NamedError, find, told
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

    A kind `package.module:Class` or `file.py:Class` is a class of the user's own, called with `config`: a
    `protocols.Policy`. The code that is named is run.

    Raises:
        ModelError: the model is missing, or is none of this kind, or the user's class is no policy; one line with the
            remedy.
    """
    return _own(config) if ":" in config.kind else _KINDS[config.kind](config)


def _own(config: PolicyConfig) -> Policy:
    try:
        policy: Policy = find(config.kind)(config)
    except NamedError as error:
        raise ModelError(f"policy.kind: {error}") from error
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"policy.kind: {config.kind} could not be constructed ({told(error)}); correct it") from error
    missing = [name for name in vars(Policy) if not name.startswith("_") and not hasattr(policy, name)]
    if missing:
        raise ModelError(f"policy.kind: {config.kind} has no {missing[0]}; define all of protocols.Policy")
    return policy


__all__ = ["Flux2Policy", "FluxKontextPolicy", "QwenImageEditPolicy", "UnoPolicy", "build_policy"]
