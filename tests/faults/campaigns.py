"""Generated inputs of commands: each works, or ends in one line within 20 s, and nothing is lost.

`CGRPO_FAULT_EXAMPLES` sets the number of inputs of the tests.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st
from PIL import Image

from .bench import Bench, set_options
from .generated import SECONDS, try_all

Outcome = Literal["worked", "refused", "interrupted"]
#: One input: a text for messages, and the trial, which gets an empty folder and a finished run.
Trial = tuple[str, Callable[[Bench, Path, Path], Outcome]]

IMAGE, PROMPT = "photo.png", ["--prompt", "a cat"]
PAIRS = b'{"prompt": "a cat", "references": ["photo.png"]}\n'
GENERATE = ["generate", *PROMPT, "--steps", "1"]
COMPARE = ["compare", "--protocol=embedded", "--images=1", "--steps=1", "--benchmark=pairs.jsonl"]


def place_inputs(folder: Path) -> None:
    """Write a photo and a file of pairs that a command may take."""
    Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(folder / IMAGE)
    (folder / "pairs.jsonl").write_bytes(PAIRS)


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

    try_all(trials, one, examples, number)
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


def short_run(**changes: object) -> list[str]:
    """Options of a run of two iterations; two underscores stand for a dot."""
    return set_options(train__iterations=2, train__trackers=[], train__ema=0, **changes)
