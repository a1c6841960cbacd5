"""Folders that are full, read-only, in use, damaged, of another model or an older version.

Each experiment returns what was found wrong; None if this machine cannot do it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .bench import EVERY, ITERATIONS, Bench, broken_promises, new_run
from .campaigns import GENERATE, IMAGE, digests, place_inputs
from .kills import Reference

NEWEST = f"checkpoints/{ITERATIONS:06d}"


def full_disk(bench: Bench, whole: Reference, share: float) -> list[str] | None:
    """A run on a file system with room for a share of what it takes in the end; then it gets the rest."""
    folder = bench.place("full")
    run = folder / "run"
    run.mkdir()
    needed = sum(path.stat().st_size for path in (whole.folder / "run").rglob("*") if path.is_file())
    with _mounted(["-t", "tmpfs", "-o", f"size={int(share * needed)}"], run) as done:
        if not done:
            return None
        wrong = bench.train(folder).wait().lacks_line("no space left on device; free some disk space", "run")
        wrong += broken_promises(folder, whole.result)
        if list((run / "checkpoints").glob(".*")):
            wrong.append("what is left of a checkpoint takes the room")
        subprocess.run(["mount", "-o", f"remount,size={4 * needed}", str(run)], check=True)
        return wrong + bench.ends_differently(folder, whole.result)


def full_output(bench: Bench, whole: Reference) -> list[str]:
    """Commands that write to a full file system, or where this process may not mount one, files that may not grow."""
    folder = bench.place("output")
    full, run = folder / "full", whole.folder / "run"
    full.mkdir()
    place_inputs(folder)
    before, wrong = digests(run), []
    with _mounted(["-t", "tmpfs", "-o", "size=64k"], full) as done:
        if done:
            with suppress(OSError), (full / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(1024)):
                    pass
        left = digests(full)
        for command in (
            [*GENERATE, "--reference", IMAGE, "--out", "full/new.png"],
            ["export", str(run), "--out", "full/new"],
            ["merge", str(run), "--out", "full/new"],
        ):
            ended = bench.start(command, folder, largest=None if done else 500).wait()
            reason = "no space left on device; free some disk space" if done else "file too large; raise the limit"
            wrong += ended.lacks_line(reason, "full/")
            wrong += [f"{command[0]}: something is left"] * (digests(full) != left or any(full.rglob(".*")))
    return wrong + ["the run has changed"] * (digests(run) != before)


def too_large_file(bench: Bench, whole: Reference) -> list[str]:
    """Files that may not grow as large as a checkpoint's: a limit of the system, which needs no rights to set."""
    folder = bench.place("limited")
    ended = bench.train(folder, largest=400_000).wait()
    wrong = ended.lacks_line("file too large; raise the limit on file sizes", "checkpoints/000002")
    return wrong + broken_promises(folder, whole.result) + bench.ends_differently(folder, whole.result)


def read_only(bench: Bench, whole: Reference) -> list[str] | None:
    """A run that is resumed in a folder that has become read-only, and one that begins in such a folder."""
    folder = bench.place("read-only")
    run = folder / "run"
    shutil.copytree(whole.half / "run", run)
    before = digests(run)
    with _mounted(["--bind"], run, run) as done:
        if not done:
            return None
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        ended = bench.train(folder).wait()
        wrong = ended.lacks_line("read-only file system; give a folder that can be written", "run")
        inside = bench.run(["train", "--out", "run/inner", *new_run()[3:]], folder)
        wrong += inside.lacks_line("read-only file system", "run/inner")
    wrong += ["something was written"] * (digests(run) != before)
    return wrong + bench.ends_differently(folder, whole.result)


def in_use(bench: Bench, whole: Reference) -> list[str]:
    """A second process on a run is refused; the first one does not notice."""
    folder = bench.place("in-use")
    first = bench.train(folder)
    first.until("sampling")
    first.kill(signal.SIGSTOP)
    second = bench.run(["train", "--resume", "run"], folder)
    wrong = second.lacks_line(f"in use by process {first.pid}", "run")
    wrong += bench.run(new_run(), folder).lacks_line("holds something already", "run")
    first.kill(signal.SIGCONT)
    ended = first.wait()
    wrong += [f"the first ended with {ended.code}: {ended.output[-300:]}"] * (ended.code != 0)
    return wrong + bench.ends_differently(folder, whole.result)


def damaged(bench: Bench, whole: Reference, count: int | None, chance: random.Random) -> list[str]:
    """A flipped bit in files of the newest checkpoint, or a file gone: the older one is used, with a warning."""
    files = sorted(path for path in (whole.folder / "run" / NEWEST).rglob("*") if path.is_file())
    wrong = []
    for file in [*(files if count is None else chance.sample(files, count)), None]:
        folder = _copy(bench, whole)
        newest = folder / "run" / NEWEST
        if file is None:
            next(newest.rglob("pytorch_lora_weights.safetensors")).unlink()
        else:
            target = folder / "run" / file.relative_to(whole.folder / "run")
            data = bytearray(target.read_bytes())
            place = chance.randrange(8 * len(data))
            data[place // 8] ^= 1 << place % 8
            target.write_bytes(data)
        before = digests(newest)
        ended = bench.train(folder).wait()
        if (
            ended.code != 0
            or "damaged" not in ended.output
            or f"resuming from {(ITERATIONS - 1) // EVERY * EVERY:06d}" not in ended.output
        ):
            wrong.append(f"{file}: ended with {ended.code}: {ended.output[-500:]}")
        kept = newest.with_name(f"{newest.name}.damaged")
        wrong += [f"{file}: the damaged one is gone"] * (not kept.is_dir() or digests(kept) != before)
        wrong += bench.ends_differently(folder, whole.result)
    return wrong


def refused(bench: Bench, whole: Reference) -> list[str]:
    """Runs that cannot be resumed are refused in one line, and nothing of them is changed."""
    wrong = []
    for pattern, old, new, *parts in (
        ("config.yaml", "rank: ", "rank: 3 # ", "changed since checkpoint", "policy.lora.rank"),
        ("config.yaml", "version: 1", "version: 0", "settings of another version", "config.yaml:1: version"),
        ("manifest.json", '"version": 1', '"version": 0', "has format version 0", "checkpoints/"),
        ("manifest.json", None, None, "older versions", "checkpoints/"),
        ("state.safetensors", None, None, "state.safetensors cannot be read", "put back a copy of it"),
    ):
        folder = _copy(bench, whole)
        run = folder / "run"
        for file in list(run.rglob(pattern)):
            if old is None or new is None:
                file.unlink()
            else:
                text = file.read_text()
                assert text.count(old) == 1, (file, old)
                file.write_text(text.replace(old, new))
        kept = [run / "checkpoints", run / "lora", run / "evaluation"]
        before = [digests(path) for path in kept]
        wrong += bench.train(folder).wait().lacks_line(*parts)
        wrong += [f"{parts}: something was overwritten"] * ([digests(path) for path in kept] != before)
    return wrong


def _copy(bench: Bench, whole: Reference) -> Path:
    folder = bench.place("copy")
    shutil.copytree(whole.folder / "run", folder / "run")
    return folder


@contextmanager
def _mounted(options: list[str], target: Path, source: Path | None = None) -> Iterator[bool]:
    """A file system at `target`; False if this process may not mount any."""
    command = ["mount", *options, str(source or "cgrpo-faults"), str(target)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(target)], check=True)
