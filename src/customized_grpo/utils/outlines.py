"""Models without weights: the real classes on torch's meta device, built from their JSON configs alone.

Configs come from a local folder, the Hub's local cache, known_models.json (public models, without connection or
licence), or the Hub itself (a few kilobytes), in this order.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download
from torch import nn
from transformers.initialization import no_init_weights

from customized_grpo.utils.hub import ModelError, first_line, loadable, resolve

_KNOWN = Path(__file__).with_name("known_models.json")

#: Reads a JSON file of a model by its path in the model's folder.
ReadConfig = Callable[[str], dict[str, Any]]


def config_reader(path: str, revision: str | None = None, *, first: str = "model_index.json") -> ReadConfig:
    """Return a reader of the JSON configs of a model. Both raise ModelError for a missing file, it for `first`."""
    source = resolve(path)
    if isinstance(source, Path):
        return lambda name: _json(source / name, path)

    def fetched(name: str, *, here: bool = False) -> dict[str, Any]:
        try:
            return _json(Path(hf_hub_download(source, name, revision=revision, local_files_only=here)), path)
        except ModelError:
            raise
        except Exception as error:  # of the hub's client, and of what it is built on
            raise ModelError(
                f"{path}: {name} is neither in the local cache nor available from the Hub ({first_line(error)}); "
                "connect once, or give a folder with the model's JSON configs"
            ) from error

    known = _json(_KNOWN, str(_KNOWN))
    if path in known["models"] and revision is None:
        try:
            fetched(first, here=True)
        except ModelError:
            return lambda name: _known(known, path, name)
    loadable(path)
    fetched(first)
    return fetched


def outline_pipeline(path: str, revision: str | None, dtype: torch.dtype, pipelines: dict[str, Any]) -> Any:
    """Build the pipeline at `path` on meta, as one of the classes `pipelines`; without tokenizers and processors.

    Raises ModelError if there are no configs, or they are of another pipeline.
    """
    read = config_reader(path, revision)
    index = read("model_index.json")
    kind = index.get("_class_name")
    if kind not in pipelines:
        raise ModelError(f"{path} is a {kind}; give the folder or hub id of a diffusers {' or '.join(pipelines)}")
    parts: dict[str, Any] = {}
    for name, listed in index.items():
        if isinstance(listed, list) and listed[0] is not None:
            parts[name] = _outline_part(path, read, name, str(listed[1]), dtype)
        elif isinstance(listed, bool):  # a setting of the pipeline itself, such as is_distilled
            parts[name] = listed
    return pipelines[kind](**parts)


def outline_reward(path: str, revision: str | None = None, *, answers: bool = False) -> nn.Module:
    """Build the transformers model at `path` on meta, in float32; with `answers` with the layer that predicts tokens.

    Raises ModelError if there is no config, or it is of no model that transformers knows.
    """
    config = config_reader(path, revision, first="config.json")("config.json")
    auto = transformers.AutoModelForImageTextToText if answers else transformers.AutoModel
    try:
        with torch.device("meta"), no_init_weights():  # ties none either
            kind = transformers.AutoConfig.for_model(**config)
            model: Any = auto.from_config(kind, dtype=torch.float32)
        model.tie_weights()
    except Exception as error:
        raise ModelError(
            f"{path}: config.json is not of a known model ({first_line(error)}); correct the path"
        ) from error
    assert isinstance(model, nn.Module)
    return model


class _Processor:
    """A processor without its parts, which LongCat's pipeline reads."""

    image_processor = None


def _outline_part(path: str, read: ReadConfig, name: str, kind: str, dtype: torch.dtype) -> Any:
    """Build a model on meta or a scheduler; an empty processor and None for other parts."""
    found = getattr(diffusers, kind, None) or getattr(transformers, kind, None)
    if not isinstance(found, type):
        raise ModelError(f"{path}: {name} is a {kind}, which neither diffusers nor transformers has; update them")
    build: Any = found
    try:
        if issubclass(found, diffusers.SchedulerMixin):
            return build.from_config(read(f"{name}/scheduler_config.json"))
        if issubclass(found, transformers.ProcessorMixin):
            return _Processor()
        if not issubclass(found, nn.Module):
            return None
        config = read(f"{name}/config.json")
        with torch.device("meta"), no_init_weights():
            if issubclass(found, diffusers.ModelMixin):
                model = build.from_config(config)
            else:
                model = build._from_config(build.config_class.from_dict(config), dtype=dtype)
                model.tie_weights()
        # Not the model's own `to`, which warns about dtypes that from_pretrained would keep.
        return nn.Module.to(model, dtype).requires_grad_(False).eval()
    except ModelError:
        raise
    except Exception as error:  # Two libraries raise here, from many classes.
        raise ModelError(f"{path}: {name} cannot be made of its config ({first_line(error)}); correct it") from error


def _json(file: Path, path: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {file} cannot be read as JSON ({first_line(error)}); correct the path") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: {file} is not a JSON object; download it again")
    return found


def _known(known: dict[str, Any], path: str, name: str) -> dict[str, Any]:
    model: dict[str, Any] = known["models"][path]
    part = name.partition("/")[0]
    if part in ("model_index.json", "config.json"):
        return model
    config: dict[str, Any] = known["parts"][model[part][2]]
    return config
