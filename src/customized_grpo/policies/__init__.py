"""The generators that can be tuned. A new one is a file here that implements `protocols.Policy`."""

from __future__ import annotations

import importlib
from typing import Any

from customized_grpo.config import PolicyConfig
from customized_grpo.models import ModelError
from customized_grpo.named import NamedError, find, told
from customized_grpo.protocols import Policy

__all__ = ["build_policy"]

#: module:class by kind; a module is imported when its kind is asked for.
_KINDS = {
    "flux-kontext": "flux_kontext:FluxKontextPolicy",
    "flux2": "flux2:Flux2Policy",
    "qwen-image-edit": "qwen_image_edit:QwenImageEditPolicy",
    "uno": "uno:UnoPolicy",
}


def build_policy(config: PolicyConfig, pipeline: Any = None) -> Policy:
    """The policy that `config.kind` names, loaded and ready to be trained.

    A kind `package.module:Class` or `file.py:Class` is a class of the user's own, called with `config`: a
    `protocols.Policy`. The code that is named is run.

    Args:
        config: model, size, precision and what to tune.
        pipeline: a diffusers pipeline in memory to use instead of the one at `config.path`, for the built-in kinds. Its
            models are changed in place.

    Raises:
        ModelError: the model is missing, or is none of this kind, or the user's class is no policy; one line with the
            remedy.
    """
    if ":" in config.kind:
        if pipeline is not None:
            raise ModelError(f"policy.kind: {config.kind} is a class of your own, which takes no pipeline; pass None")
        return _own(config)
    module, _, name = _KINDS[config.kind].partition(":")
    kind: Any = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    policy: Policy = kind(config, pipeline)
    return policy


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
