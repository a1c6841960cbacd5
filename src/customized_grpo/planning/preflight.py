"""Checks of all models of a run before the first one is loaded: access on the Hub, free disk space."""

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from customized_grpo.config import Config
from customized_grpo.planning.models import RewardModel, reward_models
from customized_grpo.trainer.credit import reward_name
from customized_grpo.utils.hub import ModelError, first_line, local_path, resolve

_SECONDS = 20.0  # for an answer of the Hub
#: Weights that the libraries load: of a pipeline's folders, or of a transformers model; and HPS v3's own file.
_PIPELINE, _MODEL, _NO_WEIGHTS = ("*/*.safetensors",), ("model*.safetensors", "HPSv3.safetensors"), ()


def check_models(config: Config) -> None:
    """Check that the Hub gives access to the models of a run and that they fit on the disk. Nothing is downloaded.

    Raises:
        ModelError: The Hub has no such model, or gives no access to it; a model is not cached and the Hub cannot be
            reached; or the disk has less space than the downloads need.
    """
    missing = {model.path: _bytes_to_download(key, model, weights) for key, model, weights in _repositories(config)}
    folder = Path(constants.HF_HUB_CACHE)
    needed = sum(missing.values())
    free = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free
    if needed > free:
        largest = max(missing, key=lambda path: missing[path])
        raise ModelError(
            f"{folder}: {free / 1e9:.1f} GB are free, and the models of this run need {needed / 1e9:.1f} GB more "
            f"({largest} {missing[largest] / 1e9:.1f} GB); free some, or set HF_HOME to a folder on a larger disk"
        )


def _repositories(config: Config) -> Iterator[tuple[str, RewardModel, tuple[str, ...]]]:
    """Yield the models of the run that are on the Hub: the setting that names each, and its weights' patterns."""
    policy = config.policy
    try:
        if ":" not in policy.kind and isinstance(resolve(policy.path), str):
            yield "policy.path", RewardModel("path", policy.path, policy.revision, file="model_index.json"), _PIPELINE
    except ModelError as error:
        raise ModelError(f"policy.path: {error}") from None
    for reward in (*config.rewards, *config.evaluation.monitors):
        for model in reward_models(reward, masked=config.data.path == "world"):
            key = f"reward {reward_name(reward)!r}: {model.part}"
            try:
                hub = not local_path(model.path).exists() and isinstance(resolve(model.path), str)
            except ModelError as error:
                raise ModelError(f"{key}: {error}") from None
            if hub:
                yield key, model, _MODEL if model.weights else _NO_WEIGHTS


def _bytes_to_download(key: str, one: RewardModel, weights: tuple[str, ...]) -> int:
    """Return the bytes of weights that the local cache lacks. Raises ModelError if the model cannot be had."""

    def cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(one.path, file, revision=one.revision), str)

    login = "run `hf auth login`"
    try:
        api = HfApi()
        found = api.model_info(one.path, revision=one.revision, files_metadata=True, timeout=_SECONDS)
        listed = {file.rfilename: file.size or 0 for file in found.siblings or ()}
        absent = {
            file: size
            for file, size in listed.items()
            if any(fnmatch(file, pattern) for pattern in weights)
            and file.count("/") == weights[0].count("/")
            and not cached(file)
        }
        if found.gated and (absent or not cached(one.file)):
            api.auth_check(one.path)
        return sum(absent.values())
    except GatedRepoError as error:
        raise ModelError(
            f"{key}: {one.path} is gated, and this account has not accepted its licence; accept it on "
            f"{constants.ENDPOINT}/{one.path}, then {login}"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{key}: {one.path} has no revision {one.revision!r}; correct it") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{key}: the Hub has no model {one.path}, or it is private; correct the id, or {login}"
        ) from error
    except Exception as error:  # no connection: of the Hub's client, and of what it is built on
        if cached(one.file):
            return 0
        raise ModelError(
            f"{key}: {one.path} is not in the local cache, and the Hub cannot be reached ({first_line(error)}); "
            "connect, or give a folder with the model"
        ) from error
