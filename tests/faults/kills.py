"""Runs killed with -9, at random moments and at chosen ones, until they are through: are they what they would be?"""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .bench import EVERY, Bench, Ended, Result, broken_promises, new_run
from .sites import SITES


@dataclass(frozen=True)
class Reference:
    """The run that nothing happens to: what it comes to, how often it comes to each site.

    `folder` holds it; `half` one that was killed after its first checkpoint. `seconds` is its processor time up to its
    charts, and `charts` that of those, 0 where the runs that are killed are to have none.
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


def reference(bench: Bench, *, pictures: bool = True) -> Reference:
    """Make it; without `pictures` neither it nor the runs that are killed come to their charts."""
    folder = bench.place("uninterrupted")
    brief = bench.train(folder, pictures=False).wait()
    assert brief.code == 0, brief.said
    counts = json.loads((folder / "watch" / "counts.json").read_text())
    missed = [site for site in SITES if site not in counts]
    assert not missed, f"the run never comes to {missed}"
    charts = 0.0
    if pictures:  # which are all that it has left to do
        charts = bench.train(folder).wait().processor
    half = bench.place("half")
    bench.train(half, fault={"site": "before scoring", "number": EVERY + 2}).wait()
    return Reference(folder, half, Result.of(folder / "run"), brief.processor, charts, counts)


def at_sites(bench: Bench, whole: Reference, sites: Sequence[str], chance: random.Random) -> Iterator[Trial]:
    """For each site a run that dies there, the n-th time it comes there, n being any it could be."""
    for site in sites:
        trial = Trial()
        folder = bench.place("site")
        number = chance.randint(1, whole.counts[site])
        process = bench.train(folder, fault={"site": site, "number": number}, pictures=whole.charts > 0)
        ended = process.wait()
        _judge_killed(trial, folder, ended, whole, f"{site}, {number} of {whole.counts[site]}")
        _finish(trial, bench, folder, whole)
        yield trial


def at_moments(bench: Bench, whole: Reference, kills: int, chance: random.Random) -> Iterator[Trial]:
    """Runs killed after random times, each up to three times in a row; a fifth of them may come to their charts."""
    left = kills
    while left > 0:
        trial = Trial()
        folder = bench.place("moment")
        for _ in range(min(left, chance.choice([1, 1, 2, 3]))):
            charts = whole.charts if chance.random() < 0.2 else 0.0
            process = bench.train(folder, pictures=charts > 0)
            process.work(chance.uniform(0, 0.95 * whole.seconds + charts))
            stage = process.stage
            process.kill()
            ended = process.wait()
            if ended.code == 0:
                break  # it was faster than the first
            left -= 1
            _judge_killed(trial, folder, ended, whole, f"in {stage}")
        _finish(trial, bench, folder, whole)
        yield trial


def commands(bench: Bench, whole: Reference, kills: int, chance: random.Random) -> Iterator[Trial]:
    """The same with processes that the interpreter started itself, so that their imports count too."""
    for _ in range(kills):
        trial = Trial()
        folder = bench.place("command")
        process = bench.command(new_run(), folder)
        try:
            process.wait(chance.uniform(0.5, 1.0) * (whole.seconds + whole.charts + 5))
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            _judge_killed(trial, folder, Ended(process.returncode, 0.0, said), whole, "a command, after its imports")
        _finish(trial, bench, folder, whole)
        yield trial


def _judge_killed(trial: Trial, folder: Path, ended: Ended, whole: Reference, where: str) -> None:
    trial.killed.append(where)
    if ended.code != -signal.SIGKILL:
        trial.wrong.append(f"{where}: ended with {ended.code}, not killed: {ended.said[-300:]}")
    trial.wrong += [f"{where}: {broken}" for broken in broken_promises(folder, whole.result)]


def _finish(trial: Trial, bench: Bench, folder: Path, whole: Reference) -> None:
    ended = bench.train(folder, pictures=False).wait()
    if ended.code != 0:
        trial.wrong.append(f"{trial.killed}: cannot go on: {ended.said[-300:]}")
        return
    run = folder / "run"
    trial.wrong += [f"{trial.killed}: {name} differs" for name in Result.of(run).differences(whole.result)]
    left = [str(path.relative_to(run)) for path in run.rglob(".*") if path.name != ".lock"]
    trial.wrong += [f"{trial.killed}: {name} is left" for name in left]
