"""Image generators that can be tuned. A new one implements `protocols.Policy`, most easily as a `PipelinePolicy`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from customized_grpo.config import KINDS, Kind, PolicyConfig
from customized_grpo.protocols import Policy
from customized_grpo.utils.hub import ModelError
from customized_grpo.utils.named import NamedError, error_text, find

if TYPE_CHECKING:
    from customized_grpo.policies.pipelines import PipelinePolicy

__all__ = ["PipelinePolicy", "build_policy", "class_of", "kind_of", "name_of", "register_policy"]

_Policy = TypeVar("_Policy", bound="type[PipelinePolicy]")


def __getattr__(name: str) -> Any:
    """Import diffusers, which takes seconds, only for those who use it."""
    if name != "PipelinePolicy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.pipelines").PipelinePolicy


def register_policy(name: str) -> Callable[[_Policy], _Policy]:
    """Register a subclass of `PipelinePolicy` under a name, as a decorator.

    From then on `policy.kind` may be that name, and `Policy.from_pretrained` chooses the class for its `pipelines`. A
    recipe that is run by `cgrpo` names the class by its path instead: `package.module:Class` or `file.py:Class`.

    Raises:
        ValueError: The name is taken by another class, or has a colon.
    """

    def register(policy: _Policy) -> _Policy:
        known = KINDS.get(name)
        # The same class may be defined again, as in a notebook.
        if ":" in name or (known is not None and getattr(known.policy, "__qualname__", None) != policy.__qualname__):
            raise ValueError(f"register_policy: {name!r} is taken or has a colon; choose another name")
        KINDS[name] = Kind(policy, tuple(pipeline.__name__ for pipeline in policy.pipelines), policy.presets)
        return policy

    return register


def class_of(kind: str) -> type[PipelinePolicy]:
    """Return the class of a registered or built-in kind."""
    policy = KINDS[kind].policy
    if isinstance(policy, str):
        module, _, name = policy.partition(":")
        policy = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return policy


def name_of(policy: type[PipelinePolicy]) -> str:
    """Return the kind of a class: the name it is registered under, else its path `module:Class`."""
    for kind, known in KINDS.items():
        built_in = f"{policy.__module__.removeprefix(f'{__name__}.')}:{policy.__name__}"
        if known.policy is policy or known.policy == built_in:
            return kind
    return f"{policy.__module__}:{policy.__qualname__}"


def kind_of(path: str, revision: str | None = None) -> str:
    """Return the kind of policy for the diffusers pipeline at a hub id or in a folder, by its model_index.json.

    Raises:
        ModelError: There is no pipeline, or no kind for it.
    """
    from customized_grpo.policies.loading import pipeline_name

    name = pipeline_name(path, revision)
    for kind, known in KINDS.items():
        if name in known.pipelines:
            return kind
    supported = ", ".join(pipeline for known in KINDS.values() for pipeline in known.pipelines)
    raise ModelError(f"{path}: is a {name}; supported are {supported}, or register a policy of your own")


def build_policy(config: PolicyConfig, pipeline: Any = None) -> Policy:
    """Load the policy of `config.kind`.

    A kind `package.module:Class` or `file.py:Class` is a class of the user's own, a `protocols.Policy` that is called
    with `config`. The code that is named is run.

    Args:
        config: Model, size, precision and what to train.
        pipeline: A diffusers pipeline in memory to use instead of the one at `config.path`, for registered and built-in
            kinds. Its models are changed in place.

    Raises:
        ModelError: The model is missing or of another kind, or the user's class is no policy.
    """
    if ":" not in config.kind:
        return class_of(config.kind)(config, pipeline)
    if pipeline is not None:
        raise ModelError(f"policy.kind: {config.kind} is a class of your own, which takes no pipeline; pass None")
    try:
        policy: Policy = find(config.kind)(config)
    except NamedError as error:
        raise ModelError(f"policy.kind: {error}") from error
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"policy.kind: {config.kind} could not be constructed ({error_text(error)}); correct it"
        ) from error
    missing = [name for name in vars(Policy) if not name.startswith("_") and not hasattr(policy, name)]
    if missing:
        raise ModelError(f"policy.kind: {config.kind} has no {missing[0]}; define all of protocols.Policy")
    return policy
