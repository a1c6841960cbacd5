"""Reward models: identity, prompt following, a guard against copy-pasting, a vision-language model for either, any
callable of the user's own; or any of them on another machine.

The classes are imported when they are first used, since they import transformers.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from customized_grpo.config import RewardConfig
from customized_grpo.config.loading import nearest
from customized_grpo.protocols import Reward
from customized_grpo.rewards.base import as_reward, describe
from customized_grpo.rewards.custom import load_custom
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.options import check_options
from customized_grpo.rewards.scores import score
from customized_grpo.rewards.terms import RewardTerm, terms_from
from customized_grpo.utils.devices import device_named

if TYPE_CHECKING:
    from customized_grpo.rewards.clip import Clip
    from customized_grpo.rewards.clip_image import ClipImage
    from customized_grpo.rewards.copy_paste import CopyPaste
    from customized_grpo.rewards.dino import Dino
    from customized_grpo.rewards.dino_patches import DinoPatches
    from customized_grpo.rewards.hps_v2 import HpsV2
    from customized_grpo.rewards.hps_v3 import HpsV3
    from customized_grpo.rewards.pickscore import PickScore
    from customized_grpo.rewards.remote import Remote
    from customized_grpo.rewards.siglip import Siglip
    from customized_grpo.rewards.siglip_image import SiglipImage
    from customized_grpo.rewards.vlm import Vlm

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
    "as_reward",
    "build_reward",
    "default_option",
    "default_path",
    "describe",
    "score",
    "terms_from",
]

#: module:class by kind; a module is imported when its kind is asked for.
KINDS = {
    "dino": "dino:Dino",
    "dino-patches": "dino_patches:DinoPatches",
    "clip-image": "clip_image:ClipImage",
    "siglip-image": "siglip_image:SiglipImage",
    "clip": "clip:Clip",
    "siglip": "siglip:Siglip",
    "pickscore": "pickscore:PickScore",
    "hps-v2": "hps_v2:HpsV2",
    "hps-v3": "hps_v3:HpsV3",
    "vlm": "vlm:Vlm",
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
    """The judge that `config` names, on its own device, or on `device` where it names none.

    `config.options` are the keyword arguments of the judge's own constructor or function. Raises
    RewardError, one line, where the kind, the path or an option is wrong; ModelError where its device is.
    """
    name = config.name or config.kind
    if config.device is not None:
        device = device_named(config.device, f"reward {name!r}: device")
    if ":" in config.kind:
        return load_custom(config, name, torch.device(device))
    if config.kind not in KINDS:
        raise RewardError(
            f"reward {name!r}: unknown kind {config.kind!r}; "
            + (f"did you mean {near!r}?" if (near := nearest(config.kind, KINDS)) else f"give {', '.join(KINDS)}, ")
            + ("" if near else "package.module:Class or file.py:function")
        )
    return _construct(_class_of(config.kind), config, name, device)


def _construct(judge: Callable[..., Any], config: RewardConfig, name: str, device: torch.device | str) -> Reward:
    parameters = set(inspect.signature(judge).parameters)
    if config.path and "path" not in parameters:
        raise RewardError(f"reward {name!r}: {config.kind} needs no model; leave its path out, given {config.path!r}")
    known = parameters - {"path", "name", "device", "role"}
    for option in config.options:
        if option not in known:
            raise RewardError(
                f"reward {name!r}: unknown option {option!r}; "
                + (f"did you mean {near!r}?" if (near := nearest(option, known)) else f"{config.kind} has ")
                + ("" if near else ", ".join(sorted(known)))
            )
    check_options(judge, config.options, name)
    arguments: dict[str, Any] = {"name": name, "device": device, **config.options}
    if "role" in parameters:
        arguments["role"] = config.role
    reward: Any = judge(config.path, **arguments) if config.path else judge(**arguments)
    reward.given = {**reward.given, "device": config.device}
    return reward  # type: ignore[no-any-return]


def default_path(kind: str) -> str | None:
    """The hub id that a kind loads where no path is given; None where it has none, or is a class of the user's own."""
    if kind not in KINDS:
        return None
    found = getattr(_class_of(kind), "default_path", None) or default_option(kind, "path")
    return found if isinstance(found, str) else None


def default_option(kind: str, option: str) -> Any:
    """What a built-in kind takes where an option is not given; None where it has no such option."""
    parameter = inspect.signature(_class_of(kind)).parameters.get(option)
    return None if parameter is None else parameter.default


def _class_of(kind: str) -> Any:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
