"""Read LoRA files: their settings, to build a policy for them, and their weights, to start a training from them."""

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from customized_grpo.config import LoraConfig
from customized_grpo.utils.hub import ModelError, first_line, local_path

PREFIX = "transformer."
"""Prefix in a LoRA's file of the names of layers of the transformer."""
_A, _B = ".lora_A.weight", ".lora_B.weight"

#: Layers by name, each with (down (rank, inputs), up (outputs, rank)), the scale alpha / rank included.
Terms = Mapping[str, tuple[Tensor, Tensor]]


def lora_file(path: Path) -> Path:
    """Return the file of a LoRA: `path` itself, or the one with diffusers' name in the folder `path`."""
    return path if path.is_file() or path.suffix == ".safetensors" else path / LORA_WEIGHT_NAME_SAFE


@contextmanager
def reading(file: Path | str) -> Iterator[None]:
    """Raise ModelError, which begins with `file`, if what the context reads is no LoRA in safetensors."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{file}: not a LoRA in safetensors ({first_line(error)}); save it again, or give another file"
        ) from error


def lora_metadata(path: Path, where: str | None = None) -> dict[str, Any]:
    """Read the metadata of a LoRA's file without its weights.

    Raises ModelError, which begins with `where` or the path, if it is no whole safetensors file.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the folder of a saved LoRA")
    with reading(where or path):
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY) or "{}")
        if not isinstance(metadata, dict):
            raise ValueError(f"its {LORA_ADAPTER_METADATA_KEY} is no mapping")
    return metadata


def lora_settings(path: Path) -> LoraConfig:
    """Return rank, alpha (else the rank, as for diffusers) and targets of a transformer's LoRA, a file or its folder.

    Raises ModelError if it is no such file.
    """
    file = lora_file(path)
    alpha = lora_metadata(file).get(f"{PREFIX}lora_alpha")
    with reading(file), safe_open(file, framework="pt") as weights:
        ranks = {
            name.removeprefix(PREFIX).removesuffix(_A): int(weights.get_slice(name).get_shape()[0])
            for name in weights.keys()  # noqa: SIM118 - the file is no mapping
            if name.startswith(PREFIX) and name.endswith(_A)
        }
    if not ranks:
        raise ModelError(f"{file}: no LoRA of a transformer in diffusers' form (transformer.NAME{_A}); convert it")
    if len(set(ranks.values())) > 1:
        raise ModelError(f"{file}: its layers have ranks {min(ranks.values())} to {max(ranks.values())}; one is needed")
    rank = next(iter(ranks.values()))
    return LoraConfig(rank=rank, alpha=float(rank if alpha is None else alpha), targets=sorted(ranks))


def adapter_file(path: str | Path) -> Path:
    """Return the file of `policy.adapter`: a file, or the LoRA in a folder or a run. Raises ModelError."""
    given = local_path(path)
    file = next((one for one in (lora_file(given), lora_file(given / "lora")) if one.is_file()), None)
    if file is None:
        raise ModelError(f"policy.adapter: {path}: no such file; give a LoRA's .safetensors file, its folder, or a run")
    return file


def adapter_terms(transformer: Any, pipeline: Any, path: str | Path) -> Terms:
    """Return the LoRA at `path`, in any form that the loader of the pipeline's class reads, by layer.

    Raises ModelError if it is no LoRA, or not one for the layers of this transformer.
    """
    file = adapter_file(path)
    where = f"policy.adapter: {file}"
    alpha = lora_metadata(file, where).get(f"{PREFIX}lora_alpha")
    try:
        read: Any = load_file(file)  # a dict, so that nothing but safetensors is read
        if convert := getattr(pipeline, "lora_state_dict", None):  # some pipelines have none, and read this form alone
            with_alphas = "return_alphas" in inspect.signature(convert).parameters
            read = convert(read, **({"return_alphas": True} if with_alphas else {}))
    except Exception as error:  # diffusers raises several classes for keys that it does not know
        raise ModelError(
            f"{where}: not a LoRA that diffusers reads ({first_line(error)}); give another file"
        ) from error
    state, alphas = read[:2] if isinstance(read, tuple) else (read, {})
    halves = {name.removeprefix(PREFIX): weight for name, weight in state.items()}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name in [name.removesuffix(_A) for name in halves if name.endswith(_A)]:
        if f"{name}{_B}" not in halves:
            raise ModelError(f"{where}: has {name}{_A} but lacks {name}{_B}; download it again")
        down, up = halves[f"{name}{_A}"], halves[f"{name}{_B}"]
        try:
            layer: Any = transformer.get_submodule(name)
        except AttributeError:
            raise ModelError(f"{where}: belongs to another model, policy.path has no {name}; check both") from None
        if down.shape[1:] != (layer.in_features,) or up.shape != (layer.out_features, *down.shape[:1]):
            raise ModelError(
                f"{where}: belongs to another model, {name} has down {tuple(down.shape)} and up {tuple(up.shape)}, not "
                f"(rank, {layer.in_features}) and ({layer.out_features}, rank); check policy.path"
            )
        own = (alphas or {}).get(f"{PREFIX}{name}.alpha", alpha)
        found[name] = down, up if own is None else up * (float(own) / len(down))
        if not all(half.isfinite().all() for half in found[name]):
            raise ModelError(f"{where}: {name} holds values that are not finite; download it again")
    if not found:
        raise ModelError(f"{where}: no LoRA of a transformer; give another file")
    return found


def fuse(transformer: Any, terms: Terms) -> None:
    """Add a LoRA to the weights of a transformer, in place, by the same operations on each device.

    Products are in float32 on the CPU, and sums in float32 before they are rounded to the weights' precision.
    """
    for name, (down, up) in terms.items():
        layer = transformer.get_submodule(name)
        weight = getattr(layer, "base_layer", layer).weight
        with torch.no_grad():
            weight.copy_(weight.float() + (up.float() @ down.float()).to(weight.device))
