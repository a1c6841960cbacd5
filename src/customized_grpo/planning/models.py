"""The models that a configured reward loads on this machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from customized_grpo.config import RewardConfig
from customized_grpo.rewards import KINDS, default_option, default_path, default_segmenter

#: Kinds of rewards without a model on this machine.
_MODELLESS = ("vlm", "remote", "copy-paste")


@dataclass(frozen=True)
class RewardModel:
    """A model of a reward: the key or option `part` that names it, hub id or folder, revision, a `file` that it has.

    Without `weights` only its configuration, tokenizer and processor are loaded.
    """

    part: str
    path: str
    revision: str | None
    weights: bool = True
    file: str = "config.json"


def scorer_path(reward: RewardConfig) -> str | None:
    """Return the path of a built-in kind's model on this machine; None for other rewards."""
    if reward.kind not in KINDS or reward.kind in _MODELLESS:
        return None
    return reward.path or default_path(reward.kind)


def option(reward: RewardConfig, name: str) -> Any:
    """Return the value of an option of a built-in kind, or its default."""
    return reward.options.get(name, default_option(reward.kind, name))


def reward_models(reward: RewardConfig, *, masked: bool) -> Iterator[RewardModel]:
    """Yield the models of a reward that are hub ids or folders; no default segmenter if all references are `masked`."""
    path = scorer_path(reward)
    if path is None:
        return
    hps = reward.kind == "hps-v3"
    yield RewardModel("path", path, option(reward, "revision"), file="HPSv3.safetensors" if hps else "config.json")
    if (base := option(reward, "base")) is not None:
        yield RewardModel("base", base, option(reward, "base_revision"), weights=False)
    if (processor := option(reward, "processor")) is not None:
        yield RewardModel("processor", processor, "main", False, "tokenizer_config.json")
    segmenter, detector = option(reward, "segmenter"), option(reward, "detector")
    if segmenter == "default":
        wanted = option(reward, "segment_images") or (option(reward, "segmented") and not masked)
        segmenter, default = default_segmenter(reward.kind, path) if wanted else (None, None)
        detector = detector or default
    if segmenter is not None and ":" not in segmenter:
        yield RewardModel("segmenter", segmenter, option(reward, "segmenter_revision"))
        if detector is not None:
            yield RewardModel("detector", detector, option(reward, "detector_revision"))
