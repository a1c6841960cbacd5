"""Checkpoints of a run: folders that are whole or not there, and hold all that the next iteration needs.

    checkpoints/000020/  trainable/         what the policy saves, in its own pipeline's form
                         state.safetensors  the optimiser's tensors, the random generator, a moving average
                         state.json         iteration, the optimiser's numbers, a hash of every file

Written aside, flushed to the disk and renamed; a folder whose hashes disagree is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from customized_grpo.protocols import Policy
from customized_grpo.sharding import like, whole, writes

_STATE, _TENSORS, _TRAINABLE = "state.json", "state.safetensors", "trainable"
_RNG = "rng"


class CheckpointError(ValueError):
    """A run that cannot be resumed; its text is one line that names the folder and the remedy."""


def save_checkpoint(
    folder: Path,
    iteration: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    keep: int,
    further: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the state after `iteration` iterations, `further` tensors included, then drop all but the newest `keep`
    checkpoints.

    Where weights are sharded all processes call this, and the first of them writes.
    """
    final = folder / f"{iteration:06d}"
    aside = folder / f".{final.name}.partial"
    writer = writes(_weights(optimizer))
    if writer:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    policy.save(aside / _TRAINABLE)
    tensors, numbers = _flatten(optimizer.state_dict())
    tensors |= {name: whole(tensor).contiguous() for name, tensor in (further or {}).items()}
    if not writer:
        return final
    tensors[_RNG] = torch.get_rng_state()
    save_file(tensors, aside / _TENSORS)
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(aside)): _hash(path) for path in files}
    state = {"iteration": iteration, "optimizer": numbers, "sha256": hashes}
    (aside / _STATE).write_text(json.dumps(state), encoding="utf-8")
    for path in [*files, aside / _STATE]:
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    _flush(folder)
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None where there is none."""
    for candidate in reversed(_folders(folder)):
        if _whole(candidate):
            return candidate
    return None


def checkpointed_iterations(run: Path) -> int:
    """How many iterations of a run its newest whole checkpoint holds; 0 where there is none."""
    newest = newest_checkpoint(run / "checkpoints")
    return 0 if newest is None else int(newest.name)


def load_checkpoint(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, further: Mapping[str, torch.Tensor] | None = None
) -> int:
    """Restore the policy, the optimiser and the random generator, and fill the `further` tensors; returns the
    iterations done.

    Raises CheckpointError where the checkpoint belongs to another policy, or has none of the further tensors.
    """
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    try:
        policy.load(folder / _TRAINABLE)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    tensors = load_file(folder / _TENSORS)
    for name, tensor in (further or {}).items():
        if name not in tensors:
            raise CheckpointError(f"{folder}: holds no moving average; set train.ema to 0, or start a new run")
        tensor.copy_(like(tensors.pop(name), tensor))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("ema.")}
    torch.set_rng_state(tensors.pop(_RNG))
    optimizer.load_state_dict(_unflatten(tensors, state["optimizer"], _weights(optimizer)))
    return int(state["iteration"])


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and plain numbers: no pickle is written or read."""
    tensors, numbers = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = whole(value).contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _unflatten(
    tensors: dict[str, torch.Tensor], kept: dict[str, Any], weights: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """The state of an optimiser of `weights`: what has the shape of a sharded one is sharded like it."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *kept["numbers"].items()]:
        index, name = key.split(".", 1)
        weight = weights[int(index)]
        fits = isinstance(value, torch.Tensor) and value.shape == weight.shape
        state.setdefault(int(index), {})[name] = like(value, weight) if fits else value
    return {"state": state, "param_groups": kept["param_groups"]}


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def _whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / _STATE).read_text(encoding="utf-8"))["sha256"]
        return bool(hashes) and all(_hash(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
