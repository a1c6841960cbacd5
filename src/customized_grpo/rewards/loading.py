"""Loading of a reward's own model from a folder or the hub: safetensors only, and no code of the model's own."""

from collections.abc import Collection
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.hub import loadable, resolve
from customized_grpo.utils.named import error_text

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
#: Errors of transformers and safetensors for files that are missing, damaged or of another model.
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


def check_type(path: str, types: Collection[str], revision: str, name: str) -> Any:
    """Return the configuration of a checkpoint, whose model type is one of `types`.

    Raises RewardError if it is of another type, a pickle, needs code of its own, or cannot be read.
    """
    if path.lower().endswith(_PICKLES):
        raise RewardError(
            f"reward {name!r}: {path!r} is a pickle, which is never loaded; give a folder or hub id with "
            "config.json and model.safetensors"
        )
    try:
        where = loadable(path)
        settings, _ = PreTrainedConfig.get_config_dict(where, revision=revision)
        own_code = "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING
        config = None if own_code else AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise unloadable(path, name, error) from error
    if config is None:
        raise RewardError(
            f"reward {name!r}: {path!r} needs code of its own, which is never run; give a model of one of "
            f"transformers' own types {', '.join(types)}"
        )
    if config.model_type not in types:
        raise RewardError(f"reward {name!r}: {path!r} is a {config.model_type} model; give one of {', '.join(types)}")
    return config


def load_model(
    architecture: Any,
    types: Collection[str],
    path: str,
    revision: str,
    name: str,
    unused: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Return a model of transformers and of one of `types`, frozen and in evaluation mode.

    Weights in `unused` may be missing, because no score depends on them. Raises RewardError if the model cannot be
    loaded, or lacks other weights, which would be random.
    """
    check_type(path, types, revision, name)
    try:
        model, report = architecture.from_pretrained(
            resolve(path),
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ImportError as error:
        raise RewardError(
            f"reward {name!r}: the model in {path!r} needs another library ({error_text(error)}); install it"
        ) from error
    except LOADING_ERRORS as error:
        raise unloadable(path, name, error) from error
    check_missing(set(report["missing_keys"]) - set(unused), path, name)
    return model.eval().requires_grad_(False)


def check_missing(missing: Collection[str], path: str, name: str) -> None:
    """Raise RewardError if weights are missing."""
    if missing:
        raise RewardError(f"reward {name!r}: {path!r} lacks the weights {', '.join(sorted(missing)[:3])}; get it again")


def load_tokenizer(path: str, revision: str, name: str, vocabulary: int) -> Any:
    """Return a tokenizer. Raises RewardError if files are missing, for which transformers makes an empty tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(path), revision=revision, trust_remote_code=False)
        reason = f"{len(tokenizer)} tokens where the model has {vocabulary}"
        if len(tokenizer.all_special_tokens) < len(tokenizer) <= vocabulary:
            return tokenizer
    except LOADING_ERRORS as error:
        reason = error_text(error)
    raise RewardError(
        f"reward {name!r}: {path!r} has no tokenizer of its model ({reason}); give a folder or hub id with its files"
    )


def without_tokens(text: str, tokenizer: Any) -> str:
    """Return a text without a tokenizer's special tokens: a prompt must not end the question or add an image."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    while met := next((token for token in special if token in text), None):  # what remains may form another
        text = text.replace(met, "")
    return text


def unloadable(path: str, name: str, error: BaseException) -> RewardError:
    """Return the error for a model that cannot be loaded."""
    return RewardError(
        f"reward {name!r}: no model could be loaded from {path!r} ({error_text(error)}); give "
        "a folder or hub id with config.json, preprocessor_config.json and model.safetensors"
    )
