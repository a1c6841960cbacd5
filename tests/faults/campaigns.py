"""Generated paths, rewards and damaged runs: a command works, or ends in one line within 20 s, and nothing is lost.

`CGRPO_FAULT_EXAMPLES` sets the number of inputs of the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.trainer.checkpoint import newest_checkpoint

from .bench import ITERATIONS, SETTINGS, Bench
from .generated import SECONDS

Outcome = Literal["worked", "refused", "interrupted"]
#: One input: a text for messages, and the trial, which gets an empty folder and a finished run.
Trial = tuple[str, Callable[[Bench, Path, Path], Outcome]]


@dataclass(frozen=True)
class Campaign:
    """How many generated inputs had which outcome, and a text for each that did not end as promised."""

    found: Counter[str]
    wrong: list[str]

    def __str__(self) -> str:
        return f"{self.found.total() + len(self.wrong)} tried: {dict(self.found)}, {len(self.wrong)} not as promised"


def tried(
    trials: st.SearchStrategy[Trial], examples: int, bench: Bench, run: Path, number: int | None = None
) -> Campaign:
    """Try so many generated inputs, by a seed if given."""
    found: Counter[str] = Counter()
    wrong: list[str] = []

    def one(trial: Trial) -> None:
        folder = bench.place("trial")
        try:
            found[trial[1](bench, folder, run)] += 1
        except AssertionError as error:
            wrong.append(f"{trial[0]}: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    check = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )(given(trials)(one))
    (check if number is None else seed(number)(check))()
    return Campaign(found, wrong)


def ends(bench: Bench, folder: Path, arguments: Sequence[str], *names: str) -> Outcome:
    """Run a command; assert that it works, or ends in one line that contains one of the names and a remedy."""
    ended = bench.start(list(arguments), folder, limit=2 * SECONDS).wait()
    assert ended.code in (0, 2, 130) and "Traceback" not in ended.output, (ended.code, ended.output[-3000:])
    if ended.code == 130:
        assert ended.output.splitlines()[-1:] == ["interrupted; saved files remain"], ended.output
        return "interrupted"
    assert len(ended.errors) == (ended.code == 2), (ended.code, ended.output[-1500:])
    if not ended.errors:
        return "worked"
    line = ended.errors[0]
    assert line.isprintable() and any(name in line for name in names), (line, names)
    assert any(sign in line for sign in (";", ". ", ",")), f"no remedy: {line}"
    return "refused"


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of every regular file below a folder, and the target of every link."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] != "watch" and (path.is_symlink() or path.is_file())
    }


def changed(before: dict[str, str], folder: Path) -> list[str]:
    """Return the files that are gone or differ."""
    after = digests(folder)
    return sorted(name for name, digest in before.items() if after.get(name) != digest)


def set_options(**changes: object) -> list[str]:
    """Options of a run of two iterations; two underscores stand for a dot."""
    values = SETTINGS | {"train.iterations": 2, "train.trackers": "[]", "train.ema": 0}
    values |= {name.replace("__", "."): json.dumps(value) for name, value in changes.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


# --- any path -------------------------------------------------------------------------------------------------------

_IMAGE, _PROMPT = "photo.png", ["--prompt", "a cat"]
_GENERATE = ["generate", *_PROMPT, "--steps", "1"]
_SCORE = ["score", "--reward", "copy-paste", "--role", "guard", *_PROMPT]
_NO_MODEL = ["--data=pairs.jsonl", "--set", "policy.path=./nowhere"]
_PAIRS = ["pairs", "--subject=cat"]
_ONE = ["--images=1", "--steps=1", "--benchmark=pairs.jsonl"]
_COMPARE = ["compare", "--protocol=embedded", *_ONE]
#: Commands by the place of a path, "{}" in them; RUN is a finished run. Without a model where the path is only read.
PLACES = {
    "train --config": ["train", "--config={}", "--out=new", *_NO_MODEL],
    "train --data": ["train", "--data={}", "--out=new", "--set", "policy.path=./nowhere"],
    "train --held-out": ["train", "--held-out={}", "--out=new", *_NO_MODEL],
    "train --resume": ["train", "--resume={}"],
    "train --out": ["train", "--out={}", *_NO_MODEL],
    "train --out, trained": ["train", "--out={}", *set_options()],
    "train adapter": ["train", "--out=new", *set_options(policy__adapter="{}")],
    "train conditions": ["train", "--out=new", *set_options(policy__conditions="{}")],
    "train policy.path": ["train", "--out=new", *set_options(policy__path="{}"), "--data=world"],
    "train reward": ["train", "--out=new", *set_options(rewards=[{"kind": "{}:f", "role": "prompt"}])],
    "generate --reference": [*_GENERATE, "--reference={}", "--out=new.png"],
    "generate --prompts": ["generate", "--steps=1", "--reference", _IMAGE, "--prompts={}", "--out=new.png"],
    "generate --run": [*_GENERATE, "--reference", _IMAGE, "--run={}", "--out=new.png"],
    "generate --config": [*_GENERATE, "--reference", _IMAGE, "--config={}", "--out=new.png"],
    "generate --out": [*_GENERATE, "--reference", _IMAGE, "--out={}"],
    "generate --out .png": [*_GENERATE, "--reference", _IMAGE, "--out={}.png"],
    "score --image": [*_SCORE, "--image={}", "--reference", _IMAGE],
    "score --images": [*_SCORE, "--images={}", "--reference", _IMAGE],
    "score --reference": [*_SCORE, "--image", _IMAGE, "--reference={}"],
    "score --mask": [*_SCORE, "--image", _IMAGE, "--reference", _IMAGE, "--mask={}"],
    "score --out": [*_SCORE, "--image", _IMAGE, "--reference", _IMAGE, "--out={}"],
    "score --run": ["score", *_PROMPT, "--image", _IMAGE, "--run={}"],
    "score --reward": ["score", *_PROMPT, "--image", _IMAGE, "--reward={}:f"],
    "score --path": ["score", *_PROMPT, "--image", _IMAGE, "--reference", _IMAGE, "--reward", "dino", "--path={}"],
    "pairs PHOTOS": [*_PAIRS, "--out=new.jsonl", "--", "{}"],
    "pairs --prompts": [*_PAIRS, "photos", "--prompts={}", "--out=new.jsonl"],
    "pairs --out": [*_PAIRS, "photos", "--out={}"],
    "pairs --held-out": [*_PAIRS, "photos", "--held-out={}", "--out=new.jsonl"],
    "evaluate SYSTEM": ["evaluate", "--", "{}"],
    "evaluate SYSTEM --benchmark": ["evaluate", *_ONE, "--protocol=embedded", "--out=new", "--", "{}"],
    "evaluate --benchmark": ["evaluate", *_ONE, "--benchmark={}", "--protocol=embedded", "--out=new", "--", "RUN"],
    "evaluate --protocol": ["evaluate", *_ONE, "--protocol={}", "--out=new", "--", "RUN"],
    "evaluate --out": ["evaluate", *_ONE, "--protocol=embedded", "--out={}", "--", "RUN"],
    "compare SYSTEM": [*_COMPARE, "--out=new", "--", "a={}", "b=RUN"],
    "compare --benchmark": [*_COMPARE, "--benchmark={}", "--out=new", "a=RUN", "b=RUN"],
    "compare --combinations": [*_COMPARE, "--two-subjects", "--combinations={}", "--out=new", "a=RUN", "b=RUN"],
    "compare --out": [*_COMPARE, "--out={}", "a=RUN", "b=embedded/pipeline"],
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
    "deep": b"[" * 5000, "pairs": b'{"prompt": "a cat", "references": ["photo.png"]}\n', "utf-16": "ä".encode("utf-16"),
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
    Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(folder / _IMAGE)
    (folder / "photos").mkdir()
    shutil.copyfile(folder / _IMAGE, folder / "photos" / "a.png")
    (folder / "pairs.jsonl").write_bytes(_CONTENTS["pairs"])
    for link, target in (("loop", "loop"), ("dangling", "nowhere"), ("to-zero", "/dev/zero")):
        (folder / link).symlink_to(target)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as made, chdir(folder):
        made.bind("socket")
    if kind:
        _make(folder / name, kind, folder / _IMAGE, run)
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


# --- any reward -----------------------------------------------------------------------------------------------------

_HEADER = """\
import asyncio, builtins, decimal, fractions, gc, logging, os, random, shutil, signal, sys, time, warnings
import numpy as np
import torch
class Unprintable(Exception):
    def __str__(self): raise ValueError("no text")
class Odd(BaseException): pass
def deep(n=0): return deep(n + 1)
"""
_SIGNATURES = [
    "images", "image", "prompt, image", "images, pairs", "x, y", "prompts, images, **kwargs",
    "images, prompts, references, masks, subjects", "**kwargs", "*arguments", "images, *, threshold=1",
    "completions, prompts", "images, unknown", "self", "", "images, pairs, /", "prompts",
    "images: 'torch.Tensor' = None",
]  # fmt: skip
_EFFECTS = [
    "print('x' * 1000)", "print('own: \\x1b[31m[/b]', file=sys.stderr)", "time.sleep(0.05)",
    "warnings.warn('careful')", "warnings.simplefilter('error')", "logging.disable()",
    "logging.getLogger().addHandler(logging.StreamHandler())", "torch.set_default_dtype(torch.float64)",
    "torch.set_default_dtype(torch.bfloat16)", "torch.set_default_device('meta')", "torch.set_grad_enabled(True)",
    "torch.inference_mode().__enter__()", "torch.use_deterministic_algorithms(True)", "torch.set_num_threads(3)",
    "torch.manual_seed(0)", "random.seed(0)", "np.random.seed(0)", "os.chdir('/')",
    "os.environ['OMP_NUM_THREADS'] = '7'", "os.environ.pop('HOME', None)", "os.environ.clear()",
    "signal.signal(signal.SIGINT, signal.SIG_IGN)", "signal.signal(signal.SIGTERM, signal.SIG_DFL)", "gc.disable()",
    "sys.setrecursionlimit(400)", "sys.setswitchinterval(1e-6)", "sys.argv.clear()", "sys.stdout = None",
    "sys.path.clear()", "sys.stdout.close()", "shutil.rmtree('run', ignore_errors=True)",
    "torch.backends.cudnn.benchmark = True", "np.seterr(all='raise')",
    "torch.autograd.set_detect_anomaly(True)", "asyncio.new_event_loop()",
    "time.sleep = None", "threading = None", "random.random = lambda: 2", "del builtins.open",
]  # fmt: skip
_CHANGES_ARGUMENTS = [
    "images.zero_()", "images.mul_(float('nan'))", "images.requires_grad_()", "images.resize_(0)", "del images",
    "prompts.clear()", "pairs.clear()", "kwargs.clear()",
]  # fmt: skip
_RETURNED = [
    "[1.0] * n", "[0.5 + i for i in range(n)]", "torch.rand(n)", "np.random.rand(n)", "torch.rand(n, 1)",
    "torch.rand(())", "torch.rand(n, requires_grad=True)", "torch.rand(n, device='meta')",
    "torch.ones(n, dtype=torch.int64)", "torch.ones(n, dtype=torch.bool)", "torch.ones(n, dtype=torch.complex64)",
    "torch.eye(n).to_sparse()", "torch.rand(n).to(torch.float8_e4m3fn)", "torch.tensor([])", "np.ones(n, 'f2')",
    "np.ones((n, 2))", "np.array(['a'] * n)", "np.array([None] * n)", "np.float64(1)", "[]", "[1.0]",
    "[1.0] * (n + 1)", "None", "{}", "{'scores': [1.0] * n}", "'1.0'", "['1.0'] * n", "[b'1'] * n",
    "(1.0 for _ in range(n))", "(1 / 0 for _ in range(n))", "iter(int, 1)", "itertools.repeat(1.0)",
    "[float('nan')] * n", "[float('inf')] * n", "[float('nan')] + [1.0] * (n - 1)", "[-1e308] * n",
    "[3e38 * (i % 2) for i in range(n)]", "[True] * n", "[10**400] * n", "[10**30] * n", "[decimal.Decimal(1)] * n",
    "[fractions.Fraction(1, 3)] * n", "[1j] * n", "[None] * n", "[[1.0]] * n", "tuple([1.0] * n)", "{1.0, 2.0}",
    "range(n)", "map(float, range(n))", "object()", "images", "[torch.tensor(1.0)] * n", "[torch.ones(1)] * n",
    "[torch.ones(2)] * n", "[np.float32(1)] * n", "NotImplemented", "Ellipsis", "ValueError('no')", "f", "[[]] * n",
    "asyncio.sleep(0, [1.0] * n)", "asyncio.sleep(0)", "[object()] * n", "torch.Tensor", "[slice(1)] * n", "1.0",
    "len", "[-0.0, 1e-320] * (n // 2)",
]  # fmt: skip
_RAISED = [
    "ValueError('no')", "ValueError()", "ValueError('a\\nb\\x00\\x1b[31m[/b]')", "ValueError('x' * 10**6)",
    "ValueError('\\udcff')", "KeyError('k')", "SystemExit(0)", "SystemExit('bye')", "SystemExit", "KeyboardInterrupt",
    "MemoryError", "RecursionError", "StopIteration", "StopAsyncIteration", "GeneratorExit", "asyncio.CancelledError",
    "OSError(28, 'No space left on device')", "BrokenPipeError(32, 'Broken pipe')", "FileNotFoundError(2, 'no', 'x')",
    "TimeoutError()", "EOFError()", "Unprintable()", "Odd()", "ExceptionGroup('two', [ValueError(1), KeyError(2)])",
    "BaseExceptionGroup('two', [Odd(), KeyError(2)])", "Warning('w')", "torch.OutOfMemoryError('CUDA out of memory')",
    "RuntimeError('CUDA error: an illegal access')", "UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')",
    "AssertionError()", "NotImplementedError", "ImportError('no', name='m')", "LookupError(Unprintable())",
    "type('Own', (Exception,), {})()", "SyntaxError('x')", "1", "None",
]  # fmt: skip


def rewards() -> st.SearchStrategy[Trial]:
    """Functions of any behaviour as a reward, for `score` or `train`."""
    effects = st.lists(st.sampled_from(_EFFECTS), max_size=2, unique=True)
    end = st.sampled_from(
        [f"return {one}" for one in _RETURNED] + [f"raise {one}" for one in _RAISED] + ["return deep()"]
    )
    signature = st.just("images, **kwargs") | st.sampled_from(_SIGNATURES)
    changes = st.lists(st.sampled_from(_CHANGES_ARGUMENTS), max_size=1)
    at_import = st.just("") | st.sampled_from([*_EFFECTS, *(f"raise {one}" for one in _RAISED)])
    drawn = st.tuples(
        at_import,
        st.sampled_from(["", "async "]),
        signature,
        effects,
        changes,
        end,
        st.integers(0, 3).map(lambda number: not number),
    )
    return drawn.map(_reward_trial)


def _reward_trial(drawn: tuple[str, str, str, list[str], list[str], str, bool]) -> Trial:
    at_import, kind, signature, effects, changes, end, trains = drawn
    body = ["n = len(images)", *(["await asyncio.sleep(0)"] if kind else []), *effects, *changes, end]
    if "images" not in signature:
        body[0] = f"n = {4 if trains else 2}; images = None"
    lines = "".join(f"    {line}\n" for line in body)
    code = f"{_HEADER}import itertools\n{at_import}\n{kind}def f({signature}):\n{lines}"

    def trial(bench: Bench, folder: Path, run: Path) -> Outcome:
        own, name = folder / "own.py", "own.py:f"
        own.write_text(code, encoding="utf-8")
        if trains:
            entries = [{"kind": name, "role": "prompt", "name": "own"}]
            entries.append({"kind": "dino", "role": "identity", "path": "embedded/reward-identity"})
            result = ends(bench, folder, ["train", "--out", "trained", *set_options(rewards=entries)], "own", "rewards")
            records = folder / "trained" / "metrics.jsonl"
            assert result != "worked" or len(records.read_text().splitlines()) == 2, "not trained"
            return result
        for photo in ("a.png", "b.png"):
            Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(folder / photo)
        chosen = ["--reward", name, "--role", "prompt", "--image", "a.png", "--image", "b.png"]
        result = ends(bench, folder, ["score", *chosen, *_PROMPT, "--out", "scores.csv"], name)
        assert result != "worked" or len((folder / "scores.csv").read_text().splitlines()) >= 3, "no scores"
        return result

    return f"{'train' if trains else 'score'}: {at_import!r}, {kind}def f({signature}): {body}", trial


# --- any damage to a run --------------------------------------------------------------------------------------------

_DAMAGES = [
    "missing", "empty", "cut", "garbage", "folder", "link", "loop", "pipe", "bit", "null", "list", "number", "deep",
    "text", "line gone", "line twice", "value",
]  # fmt: skip
AFTER = {
    "train --resume": ["train", "--resume", "run"],
    "train --resume further": ["train", "--resume", "run", "--set", f"train.iterations={ITERATIONS + 1}"],
    "report": ["report", "run"],
    "report --out": ["report", "run", "--out", "new.html"],
    "generate": [*_GENERATE, "--reference", _IMAGE, "--run", "run", "--out", "new.png"],
    "export": ["export", "run", "--out", "new"],
    "merge": ["merge", "run", "--out", "new"],
    "evaluate": ["evaluate", "run"],
    "compare": [*_COMPARE, "--out", "new", "a=run", "b=run/lora"],
    "score": ["score", *_PROMPT, "--image", _IMAGE, "--reference", _IMAGE, "--run", "run"],
}
#: What commands may write anew.
_WRITTEN = (
    ".lock",
    "report.html",
    "evaluation",
    "before-after.png",
    "curves.png",
    "plane.png",
    "weights.png",
    "samples",
    "groups",
)


def damages() -> st.SearchStrategy[Trial]:
    """A file or folder of a finished run that is damaged, before a command that uses the run."""
    number = st.integers(0, 2**30)
    return st.tuples(st.sampled_from(list(AFTER)), st.sampled_from(_DAMAGES), number, number).map(
        lambda drawn: (f"{drawn}", lambda bench, folder, run: _try_damage(bench, folder, run, *drawn))
    )


def _try_damage(bench: Bench, folder: Path, run: Path, command: str, damage: str, place: int, number: int) -> Outcome:
    copied = folder / "run"
    shutil.copytree(run, copied)
    Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(folder / _IMAGE)
    (folder / "pairs.jsonl").write_bytes(_CONTENTS["pairs"])
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
    """Replace one value of JSON, of a line of JSON lines, or of YAML by one of another type."""
    other = ([], {}, None, "x", -1, 10**400, True, [1], {"a": 1})[number % 9]
    lines = data.splitlines()
    try:
        whole = json.loads(data)
        return json.dumps(_replaced(whole, other, number // 9)).encode()
    except ValueError:
        pass
    one = number // 9 % (len(lines) or 1)
    try:
        lines[one] = json.dumps(_replaced(json.loads(lines[one]), other, number // 9)).encode()
    except (ValueError, IndexError):
        key, colon, _ = (lines or [b""])[one].partition(b":")
        lines[one : one + 1] = [key + colon + b" " + json.dumps(other).encode()]
    return b"\n".join(lines) + b"\n"


def _replaced(value: Any, other: Any, number: int) -> Any:
    """Replace the value of a key, or an item, at any depth."""
    if not isinstance(value, dict | list) or not value:
        return other
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[number % len(keys)]
    inner = value[key]
    value[key] = (
        _replaced(inner, other, number // len(keys)) if number % 2 and isinstance(inner, dict | list) else other
    )
    return value
