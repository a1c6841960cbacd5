"""A judge's own model from a folder or the hub, checked before it judges anything."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.hub import resolve
from customized_grpo.utils.named import told

F = TypeVar("F")
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def check_type(path: str, types: Collection[str], revision: str, name: str) -> str:
    """The model type of the checkpoint in `path`, one of `types`.

    Raises RewardError, one line, where it is another, comes with code of its own, is a pickle, or cannot be
    read.
    """
    if path.lower().endswith(_PICKLES):
        raise RewardError(
            f"reward {name!r}: {path!r} is a pickle, which is never loaded; give a folder or hub id with "
            "config.json and model.safetensors"
        )
    try:
        where = resolve(path)
        settings, _ = PreTrainedConfig.get_config_dict(where, revision=revision)
        if "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING:
            raise RewardError(
                f"reward {name!r}: {path!r} needs code of its own, which is never run; give a model of one of "
                f"transformers' own types {', '.join(types)}"
            )
        kind = str(AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False).model_type)
    except RewardError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # each library its own
        raise _unloadable(path, name, error) from error
    if kind not in types:
        raise RewardError(f"reward {name!r}: {path!r} holds a {kind} model; give one of {', '.join(types)}")
    return kind


def load_judge(
    architecture: Any,
    types: Collection[str],
    path: str,
    revision: str,
    name: str,
    unused: Collection[str] = (),
    *,
    framed: Callable[[str | Path, str], F],
    processor: str | None = None,
) -> tuple[Any, F]:
    """(the model in float32, frozen and in evaluation mode; the frame that `framed` reads beside it).

    `architecture` is a transformers class, `types` the model types it may meet; `processor` is where the
    preprocessor_config.json is that `framed` opens, where it is not in `path`. Weights that the
    checkpoint lacks would be random: RewardError, unless `unused` names them. RewardError, one
    line, for all else that fails.
    """
    check_type(path, types, revision, name)
    try:
        where = resolve(path)
        frame = framed(where, revision) if processor is None else framed(resolve(processor), "main")
        model, report = architecture.from_pretrained(
            where,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ImportError as error:
        raise RewardError(
            f"reward {name!r}: the model in {path!r} needs a library more ({told(error)}); install it, or "
            "customized-grpo[segmentation] for segmentation by queries"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(path, name, error) from error
    if absent := sorted(set(report["missing_keys"]) - set(unused)):
        raise RewardError(f"reward {name!r}: {path!r} lacks the weights {', '.join(absent[:3])}; get it again")
    return model.eval().requires_grad_(False), frame


def load_tokenizer(path: str, revision: str, name: str, vocabulary: int) -> Any:
    """The tokenizer in `path`. transformers makes an empty one where files are missing: RewardError, as for others."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(path), revision=revision, trust_remote_code=False)
        words = len(tokenizer)
    except (OSError, ValueError, KeyError) as error:
        raise RewardError(
            f"reward {name!r}: {path!r} has no tokenizer ({told(error)}); give a folder or hub id with its files"
        ) from error
    if not len(tokenizer.all_special_tokens) < words <= vocabulary:
        raise RewardError(
            f"reward {name!r}: {path!r} has no tokenizer of its model's own: {words} tokens where the model has "
            f"{vocabulary}; give a folder or hub id with its files"
        )
    return tokenizer


def _unloadable(path: str, name: str, error: BaseException) -> RewardError:
    return RewardError(
        f"reward {name!r}: no model could be loaded from {path!r} ({told(error)}); give "
        "a folder or hub id with config.json, preprocessor_config.json and model.safetensors"
    )
