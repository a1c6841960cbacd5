"""A long run of many short iterations, watched from outside: memory, open files, threads, processor time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .bench import Bench, new_run

#: The smallest iteration that still does everything. Two images teach nothing: a higher rate drifts away.
MINIMAL = {
    "rollout__steps": 2, "rollout__group_size": 2, "rollout__pairs": 1, "train__updates": 1, "train__ema": 0,
    "train__checkpoint_every": 50, "train__sample_every": 250, "train__learning_rate": 1e-5,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A process at one moment: iterations done, resident MiB, open files, threads, seconds of processor time."""

    iteration: int
    resident: float
    files: int
    threads: int
    processor: float


@dataclass(frozen=True)
class Soak:
    """Measurements in the second and in the last tenth of the iterations; the first brings caches and buffers."""

    iterations: int
    resident: tuple[float, float]
    files: tuple[int, int]
    threads: tuple[int, int]
    processor: tuple[float, float]  #: seconds per iteration

    @property
    def wrong(self) -> list[str]:
        slower = self.processor[1] / self.processor[0] - 1
        return [
            *[f"memory grew: {self.resident} MiB"] * (self.resident[1] > 1.03 * self.resident[0]),
            *[f"open files grew: {self.files}"] * (self.files[1] > self.files[0]),
            *[f"threads grew: {self.threads}"] * (self.threads[1] > self.threads[0]),
            *[f"an iteration takes {slower:+.1%} at the end"] * (slower > 0.05),
        ]


def soak(bench: Bench, iterations: int, report: Callable[[str], None]) -> Soak:
    """Run so many iterations, and sample the process after each."""
    folder, samples, read = bench.place("soak"), list[Sample](), 0
    process = bench.start(new_run(**MINIMAL, train__iterations=iterations), folder)
    metrics, stat = folder / "run" / "metrics.jsonl", Path(f"/proc/{process.pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.1)
        done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if done > read and stat.exists():
            samples.append(_sample(process.pid, done))
            if done * 20 // iterations != read * 20 // iterations:
                report(f"soak: {done}/{iterations}, {samples[-1].resident:.0f} MiB, {samples[-1].files} files")
            read = done
    ended = process.wait()
    assert ended.code == 0, ended.output[-2000:]
    tenth = iterations // 10
    early, late = (
        [sample for sample in samples if begin <= sample.iteration <= begin + tenth]
        for begin in (tenth, iterations - tenth)
    )

    def seconds(part: list[Sample]) -> float:
        return (part[-1].processor - part[0].processor) / (part[-1].iteration - part[0].iteration)

    return Soak(
        iterations,
        (median(s.resident for s in early), median(s.resident for s in late)),
        # The least: a file that is open while it is written is no leak.
        (min(s.files for s in early), min(s.files for s in late)),
        (min(s.threads for s in early), min(s.threads for s in late)),
        (seconds(early), seconds(late)),
    )


def _sample(pid: int, iteration: int) -> Sample:
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    return Sample(
        iteration,
        int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(os.listdir(proc / "fd")),
        int(fields[17]),
        (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )
