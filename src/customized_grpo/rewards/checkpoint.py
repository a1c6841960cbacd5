"""A judge's own model from a folder or the hub, checked before it judges anything."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoConfig

from customized_grpo.models import resolve
from customized_grpo.named import told
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.frame import Frame


def load_judge(
    architecture: Any,
    types: Collection[str],
    path: str,
    revision: str,
    name: str,
    unused: Collection[str] = (),
) -> tuple[Any, Frame]:
    """(the model in float32, frozen and in evaluation mode; its image processor's frame).

    `architecture` is a transformers class, `types` the model types it may meet. Weights that the
    checkpoint lacks would be random: RewardError, unless `unused` names them. RewardError, one
    line, for all else that fails.
    """
    try:
        where = resolve(path)
        kind = AutoConfig.from_pretrained(where, revision=revision).model_type
        if kind not in types:
            raise RewardError(f"reward {name!r}: {path!r} holds a {kind} model; give one of {', '.join(types)}")
        frame = Frame.of(where, revision)
        model, report = architecture.from_pretrained(
            where,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except RewardError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r}: no model could be loaded from {path!r} ({told(error)}); give "
            "a folder or hub id with config.json, preprocessor_config.json and model.safetensors"
        ) from error
    if absent := sorted(set(report["missing_keys"]) - set(unused)):
        raise RewardError(f"reward {name!r}: {path!r} lacks the weights {', '.join(absent[:3])}; get it again")
    return model.eval().requires_grad_(False), frame
