"""Checkpoints of a run: folders that are whole or not there, and hold all that the next iteration needs.

    checkpoints/000020/  trainable/         what the policy saves, in its own pipeline's form
                         state.safetensors  the optimiser's tensors, the random generator, a moving average
                         state.json         iteration, the optimiser's numbers
                         manifest.json      the version of this form, a hash of every other file

Written aside, flushed to the disk and renamed; a folder whose hashes disagree is passed over, and told of.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from customized_grpo.policies.sharding import is_sharded, like, whole
from customized_grpo.protocols import Policy
from customized_grpo.trainer.optimizer import Optimizer
from customized_grpo.utils.records import aside, drop_folder, move_folder, writing

_STATE, _TENSORS, _TRAINABLE, _MANIFEST = "state.json", "state.safetensors", "trainable", "manifest.json"
_RNG = "rng"
_VERSION = 1  #: of the form of a checkpoint
_LOG = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A run that cannot be resumed; its text is one line that names the folder and the remedy."""


def save_checkpoint(
    folder: Path,
    iteration: int,
    policy: Policy,
    optimizer: Optimizer,
    keep: int,
    further: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the state after `iteration` iterations, `further` tensors included, then drop all but the newest `keep`
    checkpoints up to it.

    A whole one that is there already is this state: it stays. A damaged one is renamed to NUMBER.damaged. Where the
    optimiser is kept together all processes call this, and the first of them writes, in any case. Raises OSError where
    the disk is full or cannot be written; no checkpoint is dropped then.
    """
    final = folder / f"{iteration:06d}"
    if not optimizer.together and final.exists() and fault_of(final) is None:
        return final
    writer = not optimizer.together or torch.distributed.get_rank() == 0
    partial = aside(final) if writer else final
    try:
        with writing(final):
            if writer or any(map(is_sharded, policy.trainable().values())):  # which all make whole together
                policy.save(partial / _TRAINABLE)
            tensors, numbers = _flatten(optimizer.state_dict())
            tensors |= {name: whole(tensor).contiguous() for name, tensor in (further or {}).items()}
            if not writer:
                return final
            tensors[_RNG] = torch.get_rng_state()
            save_file(tensors, partial / _TENSORS)
            state = {"iteration": iteration, "optimizer": numbers}
            (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            hashes = {str(path.relative_to(partial)): _hash(path) for path in files}
            manifest = {"version": _VERSION, "sha256": hashes}
            (partial / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            if final.exists() and fault_of(final) is not None:
                damaged = final.with_name(f"{final.name}.damaged")
                if damaged.exists():
                    drop_folder(damaged)
                final.replace(damaged)
            move_folder(partial, final)
    finally:
        if writer:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk gets its space back
    for old in [one for one in _folders(folder) if int(one.name) <= iteration][:-keep]:
        drop_folder(old)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None where there is no checkpoint; newer ones that are damaged are warned of.

    Raises CheckpointError where there are checkpoints and none is whole: to begin anew would overwrite the run.
    """
    newest, faults = _newest(folder)
    if newest is not None and faults:
        _LOG.warning("%s; going on from %s", "; ".join(faults), newest.name)
    return newest


def fault_of(folder: Path) -> str | None:
    """What keeps a checkpoint from being read; None where it is whole."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        version, hashes = manifest["version"], dict(manifest["sha256"])
    except FileNotFoundError:
        return f"lacks {_MANIFEST}, as those of older versions of this package do"
    except (OSError, ValueError, KeyError, TypeError):
        return f"damaged, its {_MANIFEST} cannot be read"
    if version != _VERSION:
        return f"written in the form {version!r}, which this version of the package does not read ({_VERSION})"
    for name in (_STATE, _TENSORS, *hashes):
        try:
            if _hash(folder / name) != hashes.get(name):
                return f"damaged, {name} is not what was written"
        except OSError as error:
            return f"damaged, {name} cannot be read ({error.strerror})"
    return None


def checkpointed_iterations(run: Path) -> int:
    """How many iterations of a run its newest whole checkpoint holds; 0 where there is no checkpoint.

    Raises CheckpointError as `newest_checkpoint` does.
    """
    newest, _ = _newest(run / "checkpoints")
    return 0 if newest is None else int(newest.name)


def load_checkpoint(
    folder: Path, policy: Policy, optimizer: Optimizer, further: Mapping[str, torch.Tensor] | None = None
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
    weights = list(policy.trainable().values())
    present = optimizer.state_dict()["param_groups"]  # settings that were changed since then hold
    optimizer.load_state_dict({"state": _unflatten(tensors, state["optimizer"], weights), "param_groups": present})
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
) -> dict[int, dict[str, Any]]:
    """The state of an optimiser of `weights`, one by one: what has the shape of a sharded one is sharded like it."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *kept["numbers"].items()]:
        index, name = key.split(".", 1)
        weight = weights[int(index)]
        fits = isinstance(value, torch.Tensor) and value.shape == weight.shape
        state.setdefault(int(index), {})[name] = like(value, weight) if fits else value
    return state


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), key=lambda p: int(p.name))


def _newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with the newer ones."""
    faults: list[str] = []
    for candidate in reversed(_folders(folder)):
        fault = fault_of(candidate)
        if fault is None:
            return candidate, faults
        faults.append(f"{candidate}: {fault}")
    if faults:
        raise CheckpointError(f"{faults[0]}; put back a copy of it, or begin anew in another folder")
    return None, []


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
