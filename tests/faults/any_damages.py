"""Finished runs with a damaged file or folder, before a command that uses them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path

from hypothesis import strategies as st

from customized_grpo.trainer.checkpoint import newest_checkpoint

from .bench import ITERATIONS, Bench
from .campaigns import COMPARE, GENERATE, IMAGE, PROMPT, Outcome, Trial, changed, digests, ends, place_inputs

_DAMAGES = [
    "missing", "empty", "cut", "garbage", "folder", "link", "loop", "pipe", "bit", "null", "list", "number", "deep",
    "text", "line gone", "line twice", "value",
]  # fmt: skip
AFTER = {
    "train --resume": ["train", "--resume", "run"],
    "train --resume further": ["train", "--resume", "run", "--set", f"train.iterations={ITERATIONS + 1}"],
    "report": ["report", "run"],
    "report --out": ["report", "run", "--out", "new.html"],
    "generate": [*GENERATE, "--reference", IMAGE, "--run", "run", "--out", "new.png"],
    "export": ["export", "run", "--out", "new"],
    "merge": ["merge", "run", "--out", "new"],
    "evaluate": ["evaluate", "run"],
    "compare": [*COMPARE, "--out", "new", "a=run", "b=run/lora"],
    "score": ["score", *PROMPT, "--image", IMAGE, "--reference", IMAGE, "--run", "run"],
}
#: What commands may write anew.
_WRITTEN = (
    ".lock", "report.html", "evaluation", "before-after.png", "curves.png", "plane.png", "weights.png", "samples",
    "groups",
)  # fmt: skip


def damages() -> st.SearchStrategy[Trial]:
    """A file or folder of a finished run that is damaged, before a command that uses the run."""
    number = st.integers(0, 2**30)
    return st.tuples(st.sampled_from(list(AFTER)), st.sampled_from(_DAMAGES), number, number).map(
        lambda given: (f"{given}", lambda bench, folder, run: _try_damage(bench, folder, run, *given))
    )


def _try_damage(bench: Bench, folder: Path, run: Path, command: str, damage: str, place: int, number: int) -> Outcome:
    copied = folder / "run"
    shutil.copytree(run, copied)
    place_inputs(folder)
    # First one of the folder's entries, of which some have many files, then one of its parts.
    chance = random.Random(place)
    entry = chance.choice(sorted(path for path in copied.iterdir() if not path.name.startswith(".lock")))
    target = chance.choice(sorted([entry, *entry.rglob("*")]))
    _damage(target, damage, number)
    name, before = str(target.relative_to(folder)), digests(copied)
    try:
        result = ends(bench, folder, AFTER[command], "run", "policy.", "rewards", "--")
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error
    lost = [one for one in changed(before, copied) if not one.startswith(_WRITTEN)]
    if result == "worked" and command.startswith("train"):
        lost = [one for one in lost if not _kept(copied, one, target)]
    assert not lost, f"{name}: {result}, and lost or changed: {lost}"
    return result


def _kept(copied: Path, name: str, target: Path) -> bool:
    """Return whether a resumed run may change this file: it appends records, and removes older checkpoints."""
    newest = newest_checkpoint(copied / "checkpoints", warns=False)
    assert newest is not None and int(newest.name) >= ITERATIONS, "no checkpoint of the end"
    if name.startswith("checkpoints/"):
        return newest.name not in name or target.is_relative_to(newest)
    return name.startswith(("metrics.jsonl", "starts.jsonl", "config.yaml", "lora/")) and (copied / name).exists()


def _damage(target: Path, damage: str, number: int) -> None:
    if target.is_dir():
        elsewhere = target.with_name("elsewhere")
        target.rename(elsewhere) if damage == "link" else shutil.rmtree(target)
        if damage == "link":
            target.symlink_to(elsewhere.name)
        elif damage in ("empty", "folder"):
            target.mkdir()
        elif damage == "loop":
            target.symlink_to(target.name)
        elif damage == "pipe":
            os.mkfifo(target)
        elif damage != "missing":
            target.write_bytes(b"x")
        return
    data = target.read_bytes()
    target.unlink()
    lines = data.splitlines(keepends=True) or [b""]
    one = number % len(lines)
    if damage == "folder":
        target.mkdir()
    elif damage in ("link", "loop"):
        target.symlink_to(target.name if damage == "loop" else "/dev/zero" if number % 2 else "nowhere")
    elif damage == "pipe":
        os.mkfifo(target)
    elif damage != "missing":
        flipped = bytearray(data or b"x")
        flipped[number % len(flipped)] ^= 1 << number % 8
        target.write_bytes({
            "empty": b"", "cut": data[: number % (len(data) or 1)], "garbage": os.urandom(200), "bit": bytes(flipped),
            "null": b"null", "list": b"[]", "number": b"1e999", "deep": b"[" * 5000, "text": b"\xff\xfehello",
            "line gone": b"".join([*lines[:one], *lines[one + 1 :]]),
            "line twice": b"".join([*lines[: one + 1], *lines[one:]]), "value": _other_value(data, number),
        }[damage])  # fmt: skip


def _other_value(data: bytes, number: int) -> bytes:
    """Replace one value of JSON, of JSON lines or of YAML by one of another type."""
    other = ([], {}, None, "x", -1, 10**400, True, [1], {"a": 1})[number % 9]
    values = [found.span(1) for found in re.finditer(rb":\s*([^\s,\]}\[{]+)", data)] or [(0, len(data))]
    begin, end = values[number // 9 % len(values)]
    return data[:begin] + json.dumps(other).encode() + data[end:]
