"""A long run of many short iterations, watched from outside: memory, open files, threads, seconds of an iteration."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from .bench import Bench, settings

#: The smallest iteration that still does all that one does. Two pictures teach nothing: a rate of more drifts away.
MINIMAL = {
    "rollout__steps": 2, "rollout__group_size": 2, "rollout__pairs": 1, "train__updates": 1, "train__ema": 0,
    "train__checkpoint_every": 50, "train__sample_every": 250, "train__learning_rate": 1e-5,
}  # fmt: skip
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """A process at one moment: iterations done, resident bytes, open files, threads, its own seconds of processor."""

    iteration: int
    resident: int
    files: int
    threads: int
    processor: float


@dataclass(frozen=True)
class Soak:
    """What the samples say; tenths are of the iterations. Processor time is what other work on the machine leaves."""

    iterations: int
    resident: tuple[float, float]  # median MiB of the second and of the last tenth
    files: tuple[int, int]
    threads: tuple[int, int]
    processor: tuple[float, float]  # seconds of an iteration in the first and the last tenth
    wall: tuple[float, float]

    @property
    def slower(self) -> float:
        """By what share an iteration of the last tenth takes longer than one of the first."""
        return self.processor[1] / self.processor[0] - 1

    @property
    def wrong(self) -> list[str]:
        first, last = self.resident
        return [
            *[f"memory grew from {first:.0f} to {last:.0f} MiB"] * (last > 1.03 * first),
            *[f"open files grew from {self.files[0]} to {self.files[1]}"] * (self.files[1] > self.files[0]),
            *[f"threads grew from {self.threads[0]} to {self.threads[1]}"] * (self.threads[1] > self.threads[0]),
            *[f"an iteration takes {self.slower:+.1%} at the end"] * (abs(self.slower) > 0.05),
        ]


def soak(
    bench: Bench, iterations: int, tell: Callable[[str], None] = lambda line: None, keep: Path | None = None
) -> Soak:
    """Run so many iterations; `keep` gets the samples as JSON lines."""
    folder = bench.place("soak")
    process = bench.train(folder, *settings(**MINIMAL, train__iterations=iterations), pictures=False)
    metrics = folder / "run" / "metrics.jsonl"
    samples: list[Sample] = []
    read, done = 0, 0
    while done < iterations:
        time.sleep(0.5 if iterations >= 1000 else 0.02)
        if not os.path.exists(f"/proc/{process.pid}/statm") or _state(process.pid) == "Z":
            break
        if not metrics.exists():
            continue
        with metrics.open("rb") as file:
            file.seek(read)
            new = file.read()
        read, before, done = read + len(new), done, done + new.count(b"\n")
        if done == before:
            continue
        samples.append(_sample(process.pid, done))
        if keep is not None:
            with keep.open("a") as file:
                file.write(json.dumps(samples[-1].__dict__) + "\n")
        if before * 20 // iterations != done * 20 // iterations:
            last = samples[-1]
            tell(f"soak: {done}/{iterations}, {last.resident / 2**20:.0f} MiB, {last.files} files")
    ended = process.wait()
    assert ended.code == 0, ended.said[-2000:]
    seconds = [json.loads(line)["seconds/total"] for line in metrics.read_text().splitlines()]
    tenth = iterations // 10

    def of(begin: int, end: int) -> list[Sample]:
        return [sample for sample in samples if begin <= sample.iteration <= end]

    def processor(part: list[Sample]) -> float:
        return (part[-1].processor - part[0].processor) / (part[-1].iteration - part[0].iteration)

    # The first iterations bring caches and buffers; the second tenth is what the last is held against.
    early, late = of(tenth, 2 * tenth), of(iterations - tenth, iterations)
    return Soak(
        iterations,
        (median(s.resident for s in early) / 2**20, median(s.resident for s in late) / 2**20),
        # The least: a file that is open while it is written is no leak.
        (min(s.files for s in early), min(s.files for s in late)),
        (min(s.threads for s in early), min(s.threads for s in late)),
        (processor(of(1, tenth)), processor(late)),
        (mean(seconds[:tenth]), mean(seconds[-tenth:])),
    )


def _sample(pid: int, iteration: int) -> Sample:
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    return Sample(
        iteration,
        int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir(proc / "fd")),
        int(fields[17]),
        (int(fields[11]) + int(fields[12])) / _TICK,
    )


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
