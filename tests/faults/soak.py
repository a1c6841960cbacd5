"""A long run of many short iterations, watched from outside: memory, open files, threads, seconds of an iteration."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from .bench import Bench, settings

#: The smallest iteration that still does all that one does. Two pictures teach nothing: a rate of more drifts away.
MINIMAL = {
    "rollout__steps": 2, "rollout__group_size": 2, "rollout__pairs": 1, "train__updates": 1, "train__ema": 0,
    "train__checkpoint_every": 50, "train__sample_every": 250, "train__learning_rate": 1e-5,
}  # fmt: skip
SHORT = 200  #: iterations; below them the second run would not have begun in time
STARTING = 100  #: iterations that the first run is through, about, while the second one starts


@dataclass(frozen=True)
class Sample:
    """A process at one moment: iterations done, resident bytes, open files, threads, its own seconds of processor."""

    iteration: int
    resident: int
    files: int
    threads: int
    processor: float
    time: float


@dataclass(frozen=True)
class Soak:
    """What the samples say; tenths are of the iterations.

    Processor time is what other work on the machine leaves, but for what it takes of its caches and clock: that is the
    same for two processes at one time. So the last tenth is held against the first iterations of a second run, begun
    for that beside it.
    """

    iterations: int
    resident: tuple[float, float]  # median MiB of the second and of the last tenth
    files: tuple[int, int]
    threads: tuple[int, int]
    processor: tuple[float, float]  # seconds of an iteration in the first and the last tenth
    beside: float | None  # the same of the second run, as far as it is made during the last tenth; None without one

    @property
    def slower(self) -> float:
        """By what share an iteration of the last tenth takes longer than one of a run that has just begun."""
        return self.processor[1] / (self.beside or self.processor[0]) - 1

    @property
    def wrong(self) -> list[str]:
        first, last = self.resident
        return [
            *[f"memory grew from {first:.0f} to {last:.0f} MiB"] * (last > 1.03 * first),
            *[f"open files grew from {self.files[0]} to {self.files[1]}"] * (self.files[1] > self.files[0]),
            *[f"threads grew from {self.threads[0]} to {self.threads[1]}"] * (self.threads[1] > self.threads[0]),
            *[f"an iteration takes {self.slower:+.1%} at the end"] * (abs(self.slower) > 0.05),
        ]


class Watched:
    """A run that is under way, and what it was at every look."""

    def __init__(self, bench: Bench, iterations: int, name: str) -> None:
        folder = bench.place(name)
        self.process = bench.train(folder, *settings(**MINIMAL, train__iterations=iterations), pictures=False)
        self.samples: list[Sample] = []
        self.done = 0
        self._metrics, self._read = folder / "run" / "metrics.jsonl", 0

    def look(self) -> bool:
        """Take a sample where an iteration has come to its end; whether one has."""
        if not self._metrics.exists() or not self.alive:
            return False
        with self._metrics.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        self.done += new.count(b"\n")
        if b"\n" in new:
            self.samples.append(_sample(self.process.pid, self.done))
        return b"\n" in new

    @property
    def alive(self) -> bool:
        return os.path.exists(f"/proc/{self.process.pid}/statm") and _state(self.process.pid) != "Z"

    def of(self, begin: int, end: int) -> list[Sample]:
        return [sample for sample in self.samples if begin <= sample.iteration <= end]


def soak(
    bench: Bench, iterations: int, tell: Callable[[str], None] = lambda line: None, keep: Path | None = None
) -> Soak:
    """Run so many iterations; `keep` gets the samples as JSON lines. Short ones have no second run beside them."""
    run = Watched(bench, iterations, "soak")
    second: Watched | None = None
    tenth = iterations // 10
    while run.done < iterations and run.alive:
        time.sleep(0.1 if iterations >= SHORT else 0.02)
        before = run.done
        if second is None and iterations >= SHORT and before >= iterations - tenth - STARTING:
            second = Watched(bench, iterations, "soak-beside")
        if second is not None:
            second.look()
        if not run.look():
            continue
        last = run.samples[-1]
        if keep is not None:
            with keep.open("a") as file:
                file.write(json.dumps(last.__dict__) + "\n")
        if before * 20 // iterations != run.done * 20 // iterations:
            tell(f"soak: {run.done}/{iterations}, {last.resident / 2**20:.0f} MiB, {last.files} files")
    ended = run.process.wait()
    assert ended.code == 0, ended.said[-2000:]
    # The first iterations bring caches and buffers; the second tenth is what the last is held against.
    early, late = run.of(tenth, 2 * tenth), run.of(iterations - tenth, iterations)
    beside = None
    if second is not None:
        second.process.kill()
        second.process.wait()
        meanwhile = [sample for sample in second.samples if late[0].time <= sample.time <= late[-1].time]
        assert len(meanwhile) > 1, "the second run has not come to its iterations in time"
        beside = _processor(meanwhile)
        tell(f"soak: beside it, iterations {meanwhile[0].iteration} to {meanwhile[-1].iteration} of a second run")
    return Soak(
        iterations,
        (median(s.resident for s in early) / 2**20, median(s.resident for s in late) / 2**20),
        # The least: a file that is open while it is written is no leak.
        (min(s.files for s in early), min(s.files for s in late)),
        (min(s.threads for s in early), min(s.threads for s in late)),
        (_processor(run.of(1, tenth)), _processor(late)),
        beside,
    )


def _processor(part: list[Sample]) -> float:
    """Seconds of an iteration: the median over looks, so that the few that save or draw samples do not count."""
    return median(
        (after.processor - before.processor) / (after.iteration - before.iteration) for before, after in pairwise(part)
    )


def _seconds(task: Path) -> float:
    """A thread's own of processor, finer than the ticks of `stat`; 0 where it has just ended."""
    try:
        return int(task.read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


def _sample(pid: int, iteration: int) -> Sample:
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    return Sample(
        iteration,
        int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir(proc / "fd")),
        int(fields[17]),
        sum(map(_seconds, proc.glob("task/*/schedstat"))),
        time.monotonic(),
    )


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
