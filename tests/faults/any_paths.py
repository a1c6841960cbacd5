"""Generated paths, at every place where a command takes one."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from contextlib import chdir, suppress
from pathlib import Path

from hypothesis import strategies as st

from .bench import Bench
from .campaigns import (
    COMPARE,
    GENERATE,
    IMAGE,
    PAIRS,
    PROMPT,
    Outcome,
    Trial,
    changed,
    digests,
    ends,
    place_inputs,
    short_run,
)

_SCORE = ["score", "--reward", "copy-paste", "--role", "guard", *PROMPT]
_NO_MODEL = ["--data=pairs.jsonl", "--set", "policy.path=./nowhere"]
_PAIRS = ["pairs", "--subject=cat"]
_ONE = ["--images=1", "--steps=1", "--benchmark=pairs.jsonl"]
#: Commands by the place of a path, "{}" in them; RUN is a finished run. Without a model where the path is only read.
PLACES = {
    "train --config": ["train", "--config={}", "--out=new", *_NO_MODEL],
    "train --data": ["train", "--data={}", "--out=new", "--set", "policy.path=./nowhere"],
    "train --held-out": ["train", "--held-out={}", "--out=new", *_NO_MODEL],
    "train --resume": ["train", "--resume={}"],
    "train --out": ["train", "--out={}", *_NO_MODEL],
    "train --out, trained": ["train", "--out={}", *short_run()],
    "train adapter": ["train", "--out=new", *short_run(policy__adapter="{}")],
    "train conditions": ["train", "--out=new", *short_run(policy__conditions="{}")],
    "train policy.path": ["train", "--out=new", *short_run(policy__path="{}"), "--data=world"],
    "train reward": ["train", "--out=new", *short_run(rewards=[{"kind": "{}:f", "role": "prompt"}])],
    "generate --reference": [*GENERATE, "--reference={}", "--out=new.png"],
    "generate --prompts": ["generate", "--steps=1", "--reference", IMAGE, "--prompts={}", "--out=new.png"],
    "generate --run": [*GENERATE, "--reference", IMAGE, "--run={}", "--out=new.png"],
    "generate --config": [*GENERATE, "--reference", IMAGE, "--config={}", "--out=new.png"],
    "generate --out": [*GENERATE, "--reference", IMAGE, "--out={}"],
    "generate --out .png": [*GENERATE, "--reference", IMAGE, "--out={}.png"],
    "score --image": [*_SCORE, "--image={}", "--reference", IMAGE],
    "score --images": [*_SCORE, "--images={}", "--reference", IMAGE],
    "score --reference": [*_SCORE, "--image", IMAGE, "--reference={}"],
    "score --mask": [*_SCORE, "--image", IMAGE, "--reference", IMAGE, "--mask={}"],
    "score --out": [*_SCORE, "--image", IMAGE, "--reference", IMAGE, "--out={}"],
    "score --run": ["score", *PROMPT, "--image", IMAGE, "--run={}"],
    "score --reward": ["score", *PROMPT, "--image", IMAGE, "--reward={}:f"],
    "score --path": ["score", *PROMPT, "--image", IMAGE, "--reference", IMAGE, "--reward", "dino", "--path={}"],
    "pairs PHOTOS": [*_PAIRS, "--out=new.jsonl", "--", "{}"],
    "pairs --prompts": [*_PAIRS, "photos", "--prompts={}", "--out=new.jsonl"],
    "pairs --out": [*_PAIRS, "photos", "--out={}"],
    "pairs --held-out": [*_PAIRS, "photos", "--held-out={}", "--out=new.jsonl"],
    "evaluate SYSTEM": ["evaluate", "--", "{}"],
    "evaluate SYSTEM --benchmark": ["evaluate", *_ONE, "--protocol=embedded", "--out=new", "--", "{}"],
    "evaluate --benchmark": ["evaluate", *_ONE, "--benchmark={}", "--protocol=embedded", "--out=new", "--", "RUN"],
    "evaluate --protocol": ["evaluate", *_ONE, "--protocol={}", "--out=new", "--", "RUN"],
    "evaluate --out": ["evaluate", *_ONE, "--protocol=embedded", "--out={}", "--", "RUN"],
    "compare SYSTEM": [*COMPARE, "--out=new", "--", "a={}", "b=RUN"],
    "compare --benchmark": [*COMPARE, "--benchmark={}", "--out=new", "a=RUN", "b=RUN"],
    "compare --combinations": [*COMPARE, "--two-subjects", "--combinations={}", "--out=new", "a=RUN", "b=RUN"],
    "compare --out": [*COMPARE, "--out={}", "a=RUN", "b=embedded/pipeline"],
    "report RUN": ["report", "--out=new.html", "--", "{}"],
    "report --out": ["report", "--out={}", "RUN"],
    "export RUN": ["export", "--out=new", "--", "{}"],
    "export --out": ["export", "--out={}", "RUN"],
    "merge RUN": ["merge", "--out=new", "--", "{}"],
    "merge --out": ["merge", "--out={}", "RUN"],
    "convert-hps FILE": ["convert-hps", "--out=new", "--", "{}"],
    "plan CONFIG": ["plan", "--", "{}"],
    "info --config": ["info", "--config={}"],
    "demo --run": ["demo", "--run={}", "--port=1"],
}  # fmt: skip
#: Parts of lines about something else: the path would do, and what else the command needs is not there.
_OTHER_REASONS = ["nowhere", "Gradio", "two subjects need", "the run needs", "policy.path"]
#: As it is, nothing is made there.
_AS_THEY_ARE = [
    "", ".", "..", "/", "~", "-", "photo.png/x", "loop", "loop/x", "dangling", "to-zero", "pipe", "socket",
    "/dev/null", "/dev/zero", "/dev/full", "/dev/stdin", "/proc/self/mem", "/proc/self/fd/0", "photos", "RUN",
    "RUN/config.yaml", "RUN/lora", "RUN/checkpoints", "RUN/metrics.jsonl", "photo.png", "pairs.jsonl",
    "https://127.0.0.1:1/x", "embedded", "embedded/pipeline", "embedded/../..", "name=photo.png", "x" * 256,
    "x/" * 2100, "[red]x[/red]", "[/b]", "{}", "{0.x}", "%s", "$HOME", "a\nb.png", "a\tb", "\x1b[31mx", "a:b", "a,b",
    "con.png", "ü/\u202e.png", "\u0085.png", "😀.yaml", "\udcff.png", " ", " x", "x.", "...", "*", "?", "--help", "@x",
    "#x",
]  # fmt: skip
_NAMES = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=12)
_SUFFIXES = st.sampled_from(["", ".png", ".jsonl", ".json", ".yaml", ".py", ".txt", ".html", ".safetensors"])
_CONTENTS = {
    "empty": b"", "garbage": bytes(range(256)) * 4, "text": b"a {subject} on Mars\n", "yaml": b"train: {seed: 3}\n",
    "list": b"[]\n", "object": b"{}\n", "code": b"def f(images):\n    return [1.0] * len(images)\n", "null": b"null",
    "deep": b"[" * 5000, "pairs": PAIRS, "utf-16": "ä".encode("utf-16"),
    "number": b"1e999999\n", "safetensors": (2**62).to_bytes(8, "little") + b"{}",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(9),
}  # fmt: skip
_KINDS = st.sampled_from(["missing", "folder", "pipe", "loop", "photo", "photos", "run", *_CONTENTS])


def paths() -> st.SearchStrategy[Trial]:
    """Paths of any name and kind, in a place where a command takes one."""
    chosen = st.sampled_from(_AS_THEY_ARE).map(lambda name: (name, "")) | st.tuples(
        st.tuples(_NAMES, _SUFFIXES).map("".join).filter(lambda name: name not in (".", "..")), _KINDS
    )
    return st.tuples(st.sampled_from(list(PLACES)), chosen).map(
        lambda given: (
            f"{given[0]}: {given[1]!r}",
            lambda bench, folder, run: _try_path(bench, folder, run, given[0], *given[1]),
        )
    )


def _try_path(bench: Bench, folder: Path, run: Path, place: str, name: str, kind: str) -> Outcome:
    place_inputs(folder)
    (folder / "photos").mkdir()
    shutil.copyfile(folder / IMAGE, folder / "photos" / "a.png")
    for link, target in (("loop", "loop"), ("dangling", "nowhere"), ("to-zero", "/dev/zero")):
        (folder / link).symlink_to(target)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as made, chdir(folder):
        made.bind("socket")
    if kind:
        _make(folder / name, kind, folder / IMAGE, run)
    path = name.replace("RUN", str(run))
    literal = json.dumps(path, ensure_ascii=False)[1:-1]
    arguments = [
        part.replace("{}", literal if part.startswith(("rewards=", "policy.")) else path).replace("RUN", str(run))
        for part in PLACES[place]
    ]
    before, of_run = digests(folder), digests(run)
    if place == "train --resume" and path == str(run):  # which writes its start and its weights again
        of_run = {name: digest for name, digest in of_run.items() if name.startswith("checkpoints/")}
    # The line names the path, at least its longest part of letters, or the option, or what lacks in its place.
    option = place.split()[1]
    plain = max(re.findall(r"[\w./-]+", path[:200]) or [option], key=len)[:40]
    names = [plain, str(Path(path)) if len(path) < 3 else option, option, *_OTHER_REASONS]
    try:
        return ends(bench, folder, arguments, *names)
    finally:
        lost = changed(before, folder) + changed(of_run, run)
        assert not lost, f"lost or changed: {lost}"


def _make(path: Path, kind: str, photo: Path, run: Path) -> None:
    with suppress(FileExistsError, OSError):  # a name that is taken, or that the system does not allow
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "photo":
            shutil.copyfile(photo, path)
        elif kind == "photos":
            path.mkdir()
            shutil.copyfile(photo, path / "b [x].png")
        elif kind == "run":
            shutil.copytree(run, path)
        elif kind in _CONTENTS:
            path.write_bytes(_CONTENTS[kind])
