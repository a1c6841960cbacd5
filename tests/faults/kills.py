"""Runs killed with -9, at random moments and at chosen ones, and resumed to their end."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .bench import EVERY, Bench, Ended, Result, broken_promises
from .sites import SITES


@dataclass(frozen=True)
class Reference:
    """The run that nothing happens to: its result, and how often it comes to each site.

    `folder` holds it; `half` one that was killed after its first checkpoint. `seconds` is its processor time up to its
    report, and `charts` that of the report, 0 if the killed runs are to have none.
    """

    folder: Path
    half: Path
    result: Result
    seconds: float
    charts: float
    counts: dict[str, int]


@dataclass
class Trial:
    """One run, killed once or several times: where, and what was found wrong."""

    killed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def reference(bench: Bench, *, images: bool = True) -> Reference:
    """Make the reference; without `images` no run comes to its report."""
    folder, half = bench.place("uninterrupted"), bench.place("half")
    brief = bench.train(folder).wait()
    assert brief.code == 0, brief.output
    counts = json.loads((folder / "watch" / "counts.json").read_text())
    missed = [site for site in SITES if site not in counts]
    assert not missed, f"the run never comes to {missed}"
    charts = bench.train(folder, images=True).wait().processor if images else 0.0
    bench.train(half, fault={"site": "before scoring", "number": EVERY + 2}).wait()
    return Reference(folder, half, Result.of(folder / "run"), brief.processor, charts, counts)


def at_sites(bench: Bench, whole: Reference, sites: Sequence[str], chance: random.Random) -> Iterator[Trial]:
    """Kill a run at each site, a random one of the times it comes there."""
    for site in sites:
        trial, folder = Trial(), bench.place("site")
        number = chance.randint(1, whole.counts[site])
        ended = bench.train(folder, fault={"site": site, "number": number}, images=whole.charts > 0).wait()
        _check(trial, folder, ended, whole, f"{site}, {number} of {whole.counts[site]}")
        trial.wrong += bench.ends_differently(folder, whole.result)
        yield trial


def at_moments(bench: Bench, whole: Reference, kills: int, chance: random.Random) -> Iterator[Trial]:
    """Kill runs after random times, each up to three times in a row; a fifth of them may come to their report."""
    left = kills
    while left > 0:
        trial, folder = Trial(), bench.place("moment")
        for _ in range(min(left, chance.choice([1, 1, 2, 3]))):
            charts = whole.charts if chance.random() < 0.2 else 0.0
            process = bench.train(folder, images=charts > 0)
            process.work(chance.uniform(0, 0.95 * whole.seconds + charts))
            stage, _ = process.stage
            process.kill()
            ended = process.wait()
            if ended.code == 0:
                break  # it was faster than the first
            left -= 1
            _check(trial, folder, ended, whole, f"in {stage}")
        trial.wrong += bench.ends_differently(folder, whole.result)
        yield trial


def _check(trial: Trial, folder: Path, ended: Ended, whole: Reference, where: str) -> None:
    trial.killed.append(where)
    if ended.code != -signal.SIGKILL:
        trial.wrong.append(f"{where}: ended with {ended.code}, not killed: {ended.output[-300:]}")
    trial.wrong += [f"{where}: {broken}" for broken in broken_promises(folder, whole.result)]
