"""Rewards: built-in models for identity and prompt following, a guard against copy-pasting, and any callable.

The classes are imported on first use, because they import transformers.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

import torch

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Reward
from customized_grpo.rewards.base import KEYS
from customized_grpo.rewards.callables import as_reward, describe, load_custom
from customized_grpo.rewards.errors import RewardError, did_you_mean
from customized_grpo.rewards.scores import score
from customized_grpo.rewards.terms import RewardTerm, terms_from
from customized_grpo.utils.devices import device_of

if TYPE_CHECKING:
    from customized_grpo.rewards.alignment import Clip, HpsV2, PickScore, Siglip
    from customized_grpo.rewards.copy_paste import CopyPaste
    from customized_grpo.rewards.hps_v3 import HpsV3
    from customized_grpo.rewards.remote import Remote
    from customized_grpo.rewards.similarity import ClipImage, Dino, DinoPatches, SiglipImage
    from customized_grpo.rewards.vlm import Vlm
    from customized_grpo.rewards.vlm_local import VlmLocal

__all__ = [
    "KINDS",
    "Clip",
    "ClipImage",
    "CopyPaste",
    "Dino",
    "DinoPatches",
    "HpsV2",
    "HpsV3",
    "PickScore",
    "Remote",
    "RewardError",
    "RewardTerm",
    "Siglip",
    "SiglipImage",
    "Vlm",
    "VlmLocal",
    "as_reward",
    "build_reward",
    "default_option",
    "default_path",
    "default_segmenter",
    "describe",
    "score",
    "terms_from",
]

#: module:class of each kind; modules are imported on first use.
KINDS = {
    "dino": "similarity:Dino",
    "dino-patches": "similarity:DinoPatches",
    "clip-image": "similarity:ClipImage",
    "siglip-image": "similarity:SiglipImage",
    "clip": "alignment:Clip",
    "siglip": "alignment:Siglip",
    "pickscore": "alignment:PickScore",
    "hps-v2": "alignment:HpsV2",
    "hps-v3": "hps_v3:HpsV3",
    "vlm": "vlm:Vlm",
    "vlm-local": "vlm_local:VlmLocal",
    "remote": "remote:Remote",
    "copy-paste": "copy_paste:CopyPaste",
}
_KIND_OF = {place.partition(":")[2]: kind for kind, place in KINDS.items()}


def __getattr__(name: str) -> Any:
    if name in _KIND_OF:
        return _class_of(_KIND_OF[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def build_reward(config: RewardConfig, device: torch.device | str) -> Reward:
    """Return the reward of a config.

    Args:
        config: Its options are the keyword arguments of the reward's own constructor or function.
        device: Device of a reward whose config names none.

    Raises:
        RewardError: The kind, the path or an option cannot be used.
        ModelError: The device cannot be used.
    """
    name = config.name or config.kind
    if config.device is not None:
        device = device_of(config.device, f"reward {name!r}: device")
    if ":" in config.kind:
        return load_custom(config, name, torch.device(device))
    if config.kind not in KINDS:
        kinds = f"give {', '.join(KINDS)}, package.module:Class or file.py:function"
        raise RewardError(f"reward {name!r}: unknown kind {config.kind!r}; {did_you_mean(config.kind, KINDS, kinds)}")
    built_in = _class_of(config.kind)
    parameters = set(inspect.signature(built_in).parameters)
    if config.path and "path" not in parameters:
        raise RewardError(f"reward {name!r}: {config.kind} needs no model; omit its path, given {config.path!r}")
    known = parameters - {*KEYS}
    for option in config.options:
        if option not in known:
            options = f"{config.kind} has {', '.join(sorted(known))}"
            raise RewardError(f"reward {name!r}: unknown option {option!r}; {did_you_mean(option, known, options)}")
    arguments: dict[str, Any] = {"name": name, "device": device, **config.options}
    arguments |= {"path": config.path} if config.path else {}
    arguments |= {"role": config.role} if "role" in parameters else {}
    reward: Any = built_in(**arguments)
    reward.given = {**reward.given, "device": config.device}
    return reward


def default_path(kind: str) -> str | None:
    """Return the hub id that a built-in kind loads if no path is given, None if there is none."""
    if kind not in KINDS:
        return None
    found = getattr(_class_of(kind), "default_path", None) or default_option(kind, "path")
    return found if isinstance(found, str) and found else None


def default_option(kind: str, option: str) -> Any:
    """Return the default of an option of a built-in kind, None if it has no such option."""
    parameter = inspect.signature(_class_of(kind)).parameters.get(option)
    return None if parameter is None else parameter.default


def default_segmenter(kind: str, path: str) -> tuple[str, str] | tuple[None, None]:
    """Return the segmenter and detector that a built-in kind with the model at `path` loads for photos, if any."""
    default = getattr(_class_of(kind), "default_segmentation", None)
    return (None, None) if default is None else default(path)


def _class_of(kind: str) -> Any:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
