"""Inside a process that is to be broken: where it is, how often it came to each site, and dying at one of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Where a process can be killed, the n-th time it comes there.
SITES = (
    "before a forward pass", "before scoring", "before an optimizer step", "after an optimizer step",
    "inside a metrics line", "inside a file of tensors", "inside the state", "inside a rewritten file",
    "before a flush", "before a move", "after a move", "inside a removal",
)  # fmt: skip
_TEXTS = ("state.json", "manifest.json")


def arm(watch: Path, fault: dict[str, Any] | None) -> None:
    """Have this process report in the folder `watch` where it is and what it has finished, and die at the fault.

    `fault` is {"site": one of SITES, "number": N}; with None it counts instead, into `watch`/counts.json. The site
    "a gradient of NaN" does not kill: the gradients of `count` updates from the N-th on have a NaN.
    """
    import torch

    from customized_grpo.policies.pipelines import PipelinePolicy
    from customized_grpo.reporting import callbacks as reporting
    from customized_grpo.trainer import assembly, base, callbacks, rollout, scoring, update

    watch.mkdir(parents=True, exist_ok=True)
    stage = os.open(watch / "stage", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    counts: Counter[str] = Counter()
    # With the number of its entry: scoring inside an evaluation hides that stage for a while, which is then no new one.
    stack, entered = ["start 1"], Counter[str]()

    def came(site: str) -> bool:
        """Return whether this is the moment to die; what is left to do before it is up to the caller."""
        counts[site] += 1
        if fault is None and site in SITES:
            (watch / "counts.json").write_bytes(json.dumps(counts).encode())
        return fault is not None and fault["site"] == site and counts[site] == fault["number"]

    def die_at(site: str) -> None:
        if came(site):
            die()

    def enter(name: str) -> None:
        entered[name] += 1
        stack.append(f"{name} {entered[name]}")
        os.pwrite(stage, stack[-1].ljust(24).encode(), 0)

    def leave() -> None:
        stack.pop()
        os.pwrite(stage, stack[-1].ljust(24).encode(), 0)

    _finished(watch, base, callbacks)
    for owner, name, what in (
        (assembly, "build_policy", "loading"),
        (base, "evaluate", "evaluation"),
        (rollout, "sample_trajectories", "sampling"),
        (scoring, "score", "scoring"),
        (update.Updater, "update", "updating"),
        (callbacks, "append_record", "metrics"),
        (base, "save_checkpoint", "checkpoint"),
        (reporting, "show", "ending"),
    ):
        _around(owner, name, lambda what=what: enter(what), leave)
    for owner, name, before, after in (
        (PipelinePolicy, "velocity", "before a forward pass", ""),
        (scoring, "score", "before scoring", ""),
        (torch.optim.AdamW, "step", "before an optimizer step", "after an optimizer step"),
        (os, "fsync", "before a flush", ""),
        (os, "replace", "before a move", "after a move"),
    ):
        _around(owner, name, lambda site=before: die_at(site), lambda site=after: die_at(site))
    _files(came)
    if fault is not None and "count" in fault:
        _poison(range(fault["number"], fault["number"] + fault["count"]))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, before: Callable[[], object], after: Callable[[], object]) -> None:
    inner = getattr(owner, name)

    def outer(*given: Any, **named: Any) -> Any:
        before()
        try:
            return inner(*given, **named)
        finally:
            after()

    setattr(owner, name, outer)


def _finished(watch: Path, base: Any, callbacks: Any) -> None:
    """Write one line for each checkpoint and record that is finished, which nothing may lose."""
    events = os.open(watch / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    save, append = base.save_checkpoint, callbacks.append_record

    def save_checkpoint(folder: Path, iteration: int, *rest: Any) -> Path:
        path: Path = save(folder, iteration, *rest)
        os.write(events, f"checkpoint {iteration}\n".encode())
        return path

    def append_record(path: Path, record: Any) -> None:
        append(path, record)
        os.write(events, f"record {record['iteration']}\n".encode())

    base.save_checkpoint, callbacks.append_record = save_checkpoint, append_record


def _files(came: Callable[[str], bool]) -> None:
    """Die with half a file or half a folder left."""
    from customized_grpo.trainer import checkpoint

    whole, write_text, open_path = checkpoint.save_file, Path.write_text, Path.open
    unlink, rmtree = os.unlink, shutil.rmtree
    inside: list[str] = []

    def save_file(tensors: Any, path: Any, *rest: Any) -> None:
        whole(tensors, path, *rest)
        if came("inside a file of tensors"):
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def write(self: Path, text: str, *rest: Any, **named: Any) -> int:
        if self.name in _TEXTS and came("inside the state"):
            write_text(self, text[: len(text) // 2], *rest, **named)
            die()
        return write_text(self, text, *rest, **named)

    def opened(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = open_path(self, mode, *rest, **named)
        if self.name == "metrics.jsonl" and mode == "a+b":
            return _Half(file, "inside a metrics line", came)
        return _Half(file, "inside a rewritten file", came) if self.suffix == ".tmp" and mode == "wb" else file

    def remove(*given: Any, **named: Any) -> None:
        unlink(*given, **named)
        if inside and came("inside a removal"):
            die()

    def removed(path: Any, *rest: Any, **named: Any) -> None:
        inside.append(str(path))
        try:
            rmtree(path, *rest, **named)
        finally:
            inside.pop()

    checkpoint.save_file = save_file
    Path.write_text, Path.open, os.unlink, shutil.rmtree = write, opened, remove, removed  # type: ignore[assignment]


def _poison(updates: range) -> None:
    """Have the first weight's gradient be NaN in those updates, counted from 1."""
    from customized_grpo.trainer.update import Updater

    inner, made = Updater.update, [0]

    def update(self: Updater, *given: Any) -> dict[str, float]:
        made[0] += 1
        factor = float("nan") if made[0] in updates else 1.0
        hook = next(iter(self.policy.trainable().values())).register_hook(lambda gradient: gradient * factor)
        try:
            return inner(self, *given)
        finally:
            hook.remove()

    Updater.update = update  # type: ignore[method-assign]


class _Half:
    """A file of which only a half is written where `came` returns true."""

    def __init__(self, file: Any, site: str, came: Callable[[str], bool]) -> None:
        self._file, self._site, self._came = file, site, came

    def write(self, data: bytes) -> int:
        if self._came(self._site):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()
        return int(self._file.write(data))

    def __enter__(self) -> _Half:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
