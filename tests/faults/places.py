"""Folders that do not do as they should: full, read-only, taken, damaged, of another model, of an older version.

Each experiment returns what was found wrong; None where this machine cannot do it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bench import ITERATIONS, Bench, Ended, Result, broken_promises, new_run
from .kills import Reference


def full_disk(bench: Bench, whole: Reference, share: float) -> list[str] | None:
    """A run on a file system that has room for a share of what it takes in the end; then it gets the rest."""
    folder = bench.place("full")
    run = folder / "run"
    run.mkdir()
    needed = sum(path.stat().st_size for path in (whole.folder / "run").rglob("*") if path.is_file())
    with _mounted(["-t", "tmpfs", "-o", f"size={int(share * needed)}"], run) as done:
        if not done:
            return None
        ended = bench.train(folder).wait()
        wrong = one_line(ended, "no space left on device; make room", "run")
        wrong += broken_promises(folder, whole.result)
        if list((run / "checkpoints").glob(".*")):
            wrong.append("what is left of a checkpoint takes the room")
        subprocess.run(["mount", "-o", f"remount,size={4 * needed}", str(run)], check=True)
        return wrong + _goes_on(bench, folder, whole)


def too_large_file(bench: Bench, whole: Reference) -> list[str]:
    """Files that may not grow as large as a checkpoint's: a limit of the system, which needs no rights to set."""
    folder = bench.place("limited")
    ended = bench.train(folder, largest=400_000).wait()
    wrong = one_line(ended, "file too large; raise the limit on file sizes", "checkpoints/000002")
    wrong += broken_promises(folder, whole.result)
    return wrong + _goes_on(bench, folder, whole)


def read_only(bench: Bench, whole: Reference) -> list[str] | None:
    """A run that goes on in a folder which has become read-only, and one that begins in such a folder."""
    folder = bench.place("read-only")
    run = folder / "run"
    shutil.copytree(whole.half / "run", run)
    before = digest(run)
    with _mounted(["--bind"], run, run) as done:
        if not done:
            return None
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        wrong = one_line(bench.train(folder).wait(), "read-only file system; give a folder that can be written", "run")
        inside = bench.run(["train", "--out", "run/inner", *new_run()[3:]], folder)
        wrong += one_line(inside, "read-only file system", "run/inner")
    if digest(run) != before:
        wrong.append("something was written")
    return wrong + _goes_on(bench, folder, whole)


def in_use(bench: Bench, whole: Reference) -> list[str]:
    """A second process on the run of a first one: refused; the first one does not notice."""
    folder = bench.place("in-use")
    first = bench.train(folder, pictures=False)
    first.until("sampling")
    second = bench.run(["train", "--resume", "run"], folder)
    wrong = one_line(second, f"in use by process {first.pid}", "run")
    wrong += one_line(bench.run(new_run(), folder), "holds something already", "run")
    ended = first.wait()
    wrong += [f"the first ended with {ended.code}: {ended.said[-300:]}"] * (ended.code != 0)
    return wrong + [f"{name} differs" for name in Result.of(folder / "run").differences(whole.result)]


def flipped_bits(bench: Bench, whole: Reference, count: int | None, chance: random.Random) -> list[str]:
    """A flipped bit in each file of the newest checkpoint, or in `count` of them: the older one wins, and says so."""
    newest = f"checkpoints/{ITERATIONS:06d}"
    files = sorted(path for path in (whole.folder / "run" / newest).rglob("*") if path.is_file())
    wrong = []
    for file in files if count is None else chance.sample(files, count):
        folder = _copy(bench, whole, "flipped")
        damaged = folder / "run" / file.relative_to(whole.folder / "run")
        data = bytearray(damaged.read_bytes())
        place = chance.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        damaged.write_bytes(data)
        wrong += _passed_over(bench, folder, whole, f"{file.name}, bit {place}")
    return wrong


def missing_part(bench: Bench, whole: Reference) -> list[str]:
    """A file gone from the newest checkpoint; then from all of them, so that there is nothing to go on from."""
    folder = _copy(bench, whole, "missing")
    checkpoints = folder / "run" / "checkpoints"
    next((checkpoints / f"{ITERATIONS:06d}").rglob("pytorch_lora_weights.safetensors")).unlink()
    wrong = _passed_over(bench, folder, whole, "a missing file")
    folder = _copy(bench, whole, "missing")
    for file in (folder / "run" / "checkpoints").rglob("state.safetensors"):
        file.unlink()
    return wrong + _refused(bench, folder, "state.safetensors cannot be read", "put back a copy of it")


def other_model(bench: Bench, whole: Reference) -> list[str]:
    """A checkpoint whose LoRA is of another rank than the run's settings say."""
    folder = _copy(bench, whole, "other")
    _edit(folder / "run" / "config.yaml", "rank: ", "rank: 3 # ")
    return _refused(bench, folder, "belongs to another model", "policy.lora.rank")


def older_versions(bench: Bench, whole: Reference) -> list[str]:
    """Settings and checkpoints of another version of the package, and checkpoints of before there were versions."""
    folder = _copy(bench, whole, "older-settings")
    _edit(folder / "run" / "config.yaml", "version: 1", "version: 0")
    wrong = _refused(bench, folder, "settings of another version of this package", "config.yaml:1: version")
    for change in ('"version": 0', None):
        folder = _copy(bench, whole, "older-checkpoint")
        for manifest in (folder / "run" / "checkpoints").rglob("manifest.json"):
            if change is None:
                manifest.unlink()
            else:
                _edit(manifest, '"version": 1', change)
        wrong += _refused(bench, folder, "version" if change is None else "in the form 0", "checkpoints/")
    return wrong


def _passed_over(bench: Bench, folder: Path, whole: Reference, what: str) -> list[str]:
    """The run whose newest checkpoint is damaged goes on from the older one, says so, and keeps the damaged one."""
    newest = folder / "run" / "checkpoints" / f"{ITERATIONS:06d}"
    before = digest(newest)
    ended = bench.train(folder, pictures=False).wait()
    if ended.code != 0 or "damaged" not in ended.said or f"going on from {ITERATIONS - 1:06d}" not in ended.said:
        return [f"{what}: ended with {ended.code}: {ended.said[-500:]}"]
    kept = newest.with_name(f"{newest.name}.damaged")
    wrong = [f"{what}: the damaged one is gone"] * (not kept.is_dir() or digest(kept) != before)
    return wrong + [f"{what}: {name} differs" for name in Result.of(folder / "run").differences(whole.result)]


def _refused(bench: Bench, folder: Path, *told: str) -> list[str]:
    """The run is refused in one line, and nothing that it has come to is touched."""
    run = folder / "run"

    def kept() -> list[str]:
        return [digest(run / "checkpoints"), digest(run / "lora"), (run / "metrics.jsonl").read_text()]

    before = kept()
    wrong = one_line(bench.train(folder).wait(), *told)
    return wrong + [f"{told[0]}: something was overwritten"] * (kept() != before)


def _goes_on(bench: Bench, folder: Path, whole: Reference) -> list[str]:
    ended = bench.train(folder, pictures=False).wait()
    if ended.code != 0:
        return [f"cannot go on: {ended.said[-500:]}"]
    return [f"{name} differs" for name in Result.of(folder / "run").differences(whole.result)]


def one_line(ended: Ended, *told: str) -> list[str]:
    """What is wrong unless it ended with code 2 and one line that says all of `told`."""
    fits = ended.code == 2 and len(ended.errors) == 1 and "Traceback" not in ended.said
    if fits and all(part in ended.errors[0] for part in told):
        return []
    return [f"expected one line with {told}, got {ended.code}: {ended.said[-800:]}"]


def _copy(bench: Bench, whole: Reference, name: str) -> Path:
    folder = bench.place(name)
    shutil.copytree(whole.folder / "run", folder / "run")
    return folder


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
    file.write_text(text.replace(old, new))


def digest(folder: Path) -> str:
    """What changes when a single byte below a folder does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [(str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return json.dumps(found)


@contextmanager
def _mounted(options: list[str], target: Path, source: Path | None = None) -> Iterator[bool]:
    """A file system at `target`; False where this process may not mount any."""
    may = os.geteuid() == 0
    command = ["mount", *options, str(source or "cgrpo-faults"), str(target)]
    if not may or subprocess.run(command, capture_output=True).returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(target)], check=True)
