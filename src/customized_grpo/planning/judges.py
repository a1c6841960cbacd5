"""Counts and activations of the configured judges, from their outlines on torch's meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from customized_grpo.config import RewardConfig
from customized_grpo.planning.measure import peak_bytes
from customized_grpo.planning.memory import FLOAT32, Model
from customized_grpo.planning.shapes import count
from customized_grpo.rewards import KINDS, default_option, default_path
from customized_grpo.trainer.credit import reward_name
from customized_grpo.utils.outlines import outline_judge

#: Kinds without a model of their own here.
_MODELLESS = ("vlm", "remote", "copy-paste")
_WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}
_PATCH = 28  # side in pixels of what is one token of Qwen2-VL
_INSTRUCTION = 300  # tokens of HPS v3's instruction with a prompt


@dataclass(frozen=True)
class Judge:
    """A judge's model, at `path`: bytes of a weight, bytes that computing one picture takes, pictures of a batch."""

    path: str
    model: Model
    width: int
    activations: int
    batch: int

    @property
    def bytes(self) -> int:
        return self.model.bytes(self.width)


def judges_of(rewards: Sequence[RewardConfig], pixels: int) -> tuple[dict[str, Judge], list[str]]:
    """(judges with a model here by name, what is not counted in words), for pictures of so many pixels.

    Raises:
        ModelError: no config of a model, or one that is of none.
    """
    judges: dict[str, Judge] = {}
    uncounted = []
    for reward in rewards:
        name = reward_name(reward)
        if ":" in reward.kind:
            uncounted.append(f"the reward {name!r}, code of your own")
        elif (path := model_of(reward)) is not None:
            judges[name] = _vlm(reward, path, pixels) if reward.kind == "hps-v3" else _encoder(reward, path)
        if segmenter := reward.options.get("segmenter"):
            uncounted.append(f"{segmenter}, the segmenter of the reward {name!r}")
    return judges, uncounted


def model_of(reward: RewardConfig) -> str | None:
    """Where the model of a built-in kind is that works here; None for others."""
    if reward.kind not in KINDS or reward.kind in _MODELLESS:
        return None
    return reward.path or default_path(reward.kind)


def _option(reward: RewardConfig, name: str) -> Any:
    return reward.options.get(name, default_option(reward.kind, name))


def _encoder(reward: RewardConfig, path: str) -> Judge:
    model, taken = _seeing(path)
    return Judge(path, model, FLOAT32, taken, _option(reward, "batch_size"))


@lru_cache(maxsize=32)
def _seeing(path: str) -> tuple[Model, int]:
    """Of a model with eyes: itself, and bytes that one picture takes."""
    outline: Any = outline_judge(path)
    config = getattr(outline.config, "vision_config", outline.config)
    side = config.image_size
    pixels = torch.empty(1, 3, side, side, device="meta")
    eyes = getattr(outline, "vision_model", outline)
    with torch.no_grad():
        taken = peak_bytes(lambda: eyes(pixel_values=pixels))
    return count(outline), taken + pixels.numel() * pixels.element_size()


def _vlm(reward: RewardConfig, path: str, pixels: int) -> Judge:
    """HPS v3: a language model that reads instruction and picture; its head is small beside it."""
    width = _WIDTHS.get(_option(reward, "dtype"), 2)
    tokens = _INSTRUCTION + pixels // _PATCH**2
    model, taken = _reading(_option(reward, "base"), tokens)
    return Judge(path, model, width, taken * width // FLOAT32, _option(reward, "batch_size"))


@lru_cache(maxsize=8)
def _reading(base: str, tokens: int) -> tuple[Model, int]:
    """Of a vision-language model: itself, and bytes that so many tokens take in float32."""
    outline: Any = outline_judge(base)
    told = torch.empty(1, tokens, outline.config.text_config.hidden_size, device="meta")
    with torch.no_grad():
        taken = peak_bytes(lambda: outline.language_model(inputs_embeds=told, use_cache=False))
    return count(outline), taken + told.numel() * told.element_size()
