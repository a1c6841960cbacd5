"""Judges of pictures: DINO for identity, CLIP for the prompt, a guard against copy-pasting, a vision-language
model for either, a class or function of the user's own; or any of them on another machine.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Reward
from customized_grpo.rewards.custom import load_custom
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.scores import score

__all__ = ["RewardError", "build_reward", "score"]


def build_reward(config: RewardConfig, device: torch.device | str) -> Reward:
    """The judge that `config` names, on `device`.

    `config.options` are the keyword arguments of the judge's own constructor or function. Raises
    RewardError, one line, where the kind, the path or an option is wrong.
    """
    name = config.name or config.kind
    if ":" in config.kind:
        return load_custom(config, name, torch.device(device))
    if config.kind == "dino":
        from customized_grpo.rewards.dino import DinoReward

        return _construct(DinoReward, config, name, device)
    if config.kind == "clip":
        from customized_grpo.rewards.clip import ClipReward

        return _construct(ClipReward, config, name, device)
    if config.kind == "copy-paste":
        from customized_grpo.rewards.copy_paste import CopyPasteReward

        return _construct(CopyPasteReward, config, name, device)
    if config.kind == "vlm":
        from customized_grpo.rewards.vlm import VlmReward

        return _construct(VlmReward, config, name, device)
    if config.kind == "remote":
        from customized_grpo.rewards.remote import RemoteReward

        return _construct(RemoteReward, config, name, device)
    raise RewardError(
        f"reward {name!r}: unknown kind {config.kind!r}; "
        "give dino, clip, copy-paste, vlm, remote, package.module:Class or file.py:function"
    )


def _construct(judge: Callable[..., Reward], config: RewardConfig, name: str, device: torch.device | str) -> Reward:
    parameters = set(inspect.signature(judge).parameters)
    if config.path and "path" not in parameters:
        raise RewardError(f"reward {name!r}: {config.kind} needs no model; leave its path out, given {config.path!r}")
    known = parameters - {"path", "name", "device", "role"}
    for option in config.options:
        if option not in known:
            raise RewardError(
                f"reward {name!r}: unknown option {option!r}; {config.kind} has {', '.join(sorted(known))}"
            )
    arguments: dict[str, Any] = {"name": name, "device": device, **config.options}
    if "role" in parameters:
        arguments["role"] = config.role
    return judge(config.path, **arguments) if config.path else judge(**arguments)
