"""Checkpoints of a run: folders that are complete or absent, with all state that the next iteration needs.

    checkpoints/000020/  trainable/         weights as the policy saves them
                         state.safetensors  tensors of the optimizer, a moving average
                         state.json         iteration, numbers of the optimizer, settings, fingerprints of the data
                         manifest.json      format version, SHA-256 of every other file

A checkpoint is written to a temporary folder, flushed and renamed. One whose hashes differ is skipped with a warning.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from customized_grpo.policies.sharding import any_sharded, like, whole
from customized_grpo.protocols import Policy
from customized_grpo.trainer.optimizer import Optimizer
from customized_grpo.utils.records import drop_folder, move_folder, read_regular, temporary_folder, writing

_STATE, _TENSORS, _TRAINABLE, _MANIFEST = "state.json", "state.safetensors", "trainable", "manifest.json"
_VERSION = 1  #: of the format
#: What to do where a part's state is missing, by the first part of its tensors' names.
_REMEDIES = {"ema": "set train.ema to 0"} | dict.fromkeys(
    ("old", "balance", "validation"), "restore method.objective and method.weighting"
)
_LOG = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A run that cannot be resumed; the message is one line that names the folder and the remedy."""


def save_checkpoint(
    folder: Path,
    iteration: int,
    policy: Policy,
    optimizer: Optimizer,
    keep: int,
    further: Mapping[str, torch.Tensor] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Write the state after `iteration` iterations, then remove all but the newest `keep` checkpoints up to it.

    An intact checkpoint of this iteration stays as it is; a damaged one is renamed to NUMBER.damaged. `further` tensors
    are stored by name, `origin` describes settings and data as JSON values. With sharded weights or state all processes
    call this and the first one writes. On an OSError, as of a full disk, no checkpoint is removed.
    """
    final = folder / f"{iteration:06d}"
    if not optimizer.together and final.exists() and fault_of(final) is None:
        return final
    writer = not optimizer.together or torch.distributed.get_rank() == 0
    partial = temporary_folder(final) if writer else final
    try:
        with writing(final):
            if writer or any_sharded(policy.trainable().values()):  # gathering them is a collective
                policy.save(partial / _TRAINABLE)
            tensors, numbers = _flatten(optimizer.state_dict())
            tensors |= {name: whole(tensor).contiguous() for name, tensor in (further or {}).items()}
            if not writer:
                return final
            save_file(tensors, partial / _TENSORS)
            state = {"iteration": iteration, "optimizer": numbers, "origin": dict(origin or {})}
            (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")
            hashes = {str(path.relative_to(partial)): _hash(path) for path in partial.rglob("*") if path.is_file()}
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
            shutil.rmtree(partial, ignore_errors=True)  # frees space on a full disk
    for old in [one for one in _folders(folder) if int(one.name) <= iteration][:-keep]:
        drop_folder(old)
    return final


def newest_checkpoint(folder: Path, *, warns: bool = True) -> Path | None:
    """Return the newest intact checkpoint, with a warning about newer ones that are damaged; None if there is none.

    Raises CheckpointError if all are damaged, or the folder is none; starting anew would overwrite the run.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(
            f"{folder}: is not a folder; put the checkpoints back, or start a new run in another folder"
        )
    faults: list[str] = []
    for candidate in reversed(_folders(folder)):
        fault = fault_of(candidate)
        if fault is None:
            if faults and warns:
                _LOG.warning("%s; resuming from %s", "; ".join(faults), candidate.name)
            return candidate
        faults.append(f"{candidate}: {fault}")
    if faults:
        raise CheckpointError(f"{faults[0]}; put back a copy of it, or start a new run in another folder")
    return None


def fault_of(folder: Path) -> str | None:
    """Return why a checkpoint cannot be read; None if it is intact."""
    try:
        manifest = json.loads(read_regular(folder / _MANIFEST))
        version, hashes = manifest["version"], dict(manifest["sha256"])
    except FileNotFoundError:
        return f"lacks {_MANIFEST}, as those of older versions of this package do"
    except (OSError, ValueError, KeyError, TypeError):
        return f"damaged, its {_MANIFEST} cannot be read"
    if version != _VERSION:
        return f"has format version {version!r}; this version of the package reads {_VERSION}"
    for name in (_STATE, _TENSORS, *hashes):
        if (folder / name).exists() and not (folder / name).is_file():  # a pipe would block, a device never end
            return f"damaged, {name} is not a file"
        try:
            if _hash(folder / name) != hashes.get(name):
                return f"damaged, {name} is not what was written"
        except OSError as error:
            return f"damaged, {name} cannot be read ({error.strerror})"
    return None


def origin_of(folder: Path) -> dict[str, Any]:
    """Return the description of settings and data in a checkpoint; empty in those of earlier versions."""
    return json.loads((folder / _STATE).read_text(encoding="utf-8")).get("origin", {})


def checkpointed_iterations(run: Path) -> int:
    """Return the iterations in a run's newest intact checkpoint, or 0; raise as `newest_checkpoint` does."""
    newest = newest_checkpoint(run / "checkpoints", warns=False)
    return 0 if newest is None else int(newest.name)


def load_checkpoint(
    folder: Path, policy: Policy, optimizer: Optimizer, further: Mapping[str, torch.Tensor] | None = None
) -> int:
    """Restore the policy and optimizer state, fill the `further` tensors; return iterations done.

    The optimizer's settings stay the present ones. Tensors of a user's callback that the checkpoint lacks stay as they
    are, with a warning. CheckpointError if the checkpoint does not fit.
    """
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    try:
        policy.load(folder / _TRAINABLE)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    tensors = load_file(folder / _TENSORS)
    for name, tensor in (further or {}).items():
        part = name.split(".")[0]
        if name in tensors and tensors[name].shape == tensor.shape:
            tensor.copy_(like(tensors.pop(name), tensor))
            continue
        lack = f"has a {part} state of another shape" if name in tensors else f"has no {part} state"
        if part in _REMEDIES:
            raise CheckpointError(f"{folder}: {lack}; {_REMEDIES[part]}, or start a new run")
        _LOG.warning("%s: %s (%s), which begins anew", folder, lack, name)  # of a callback that is new or has changed
    # Others are no longer needed: random numbers are a function of seed and iteration.
    entries = {name: tensor for name, tensor in tensors.items() if name[0].isdigit()}
    restored = _unflatten(entries | state["optimizer"]["numbers"], list(policy.trainable().values()))
    optimizer.load_state_dict({"state": restored, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["iteration"])


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimizer's state into named tensors and plain numbers, which need no pickle."""
    tensors, numbers = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = whole(value).contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _unflatten(entries: Mapping[str, Any], weights: Sequence[torch.Tensor]) -> dict[int, dict[str, Any]]:
    """Return the state of an optimizer of `weights`; tensors of the shape of a sharded weight are sharded like it."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in entries.items():
        index, name = key.split(".", 1)
        weight = weights[int(index)]
        fits = isinstance(value, torch.Tensor) and value.shape == weight.shape
        state.setdefault(int(index), {})[name] = like(value, weight) if fits else value
    return state


def _folders(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if path.name.isdigit() and path.is_dir()), key=lambda path: int(path.name))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
