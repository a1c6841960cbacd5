"""One system on a benchmark: what is missing is drawn and scored, then all of it summed up.

Several processes share the cases: each takes those of its number, and none waits for another. The one that finds
nothing left to do anywhere sums up.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from customized_grpo.config import ConfigError
from customized_grpo.data.benchmark import Benchmark, Case, open_benchmark, select
from customized_grpo.evaluation.dreambench.drawing import draw, undrawn
from customized_grpo.evaluation.dreambench.folder import (
    TEMPLATE,
    EvaluationFolder,
    PictureFolder,
    check_template,
    difference,
)
from customized_grpo.evaluation.dreambench.protocol import EvaluationProtocol, load_protocol
from customized_grpo.evaluation.dreambench.scoring import Measures, checksums, score_cases, unscored
from customized_grpo.evaluation.dreambench.summary import Scores, as_markdown, show, summary
from customized_grpo.evaluation.dreambench.systems import System, find_system
from customized_grpo.rewards import build_reward
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.records import write_bytes, write_json

_LINES = 20  # of progress in a log file
_FEW = 10  # subjects: with fewer, resampled means stay too close together


@dataclass(frozen=True)
class Task:
    """What all systems of one command are put to.

    `process` of `processes` works at every so many-th case.
    """

    benchmark: Benchmark
    cases: tuple[Case, ...]
    measures: Measures
    process: int = 0
    processes: int = 1

    @property
    def protocol(self) -> EvaluationProtocol:
        return self.measures.protocol

    @property
    def own(self) -> tuple[Case, ...]:
        return self.cases[self.process :: self.processes]

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know."""
        benchmark, units = self.benchmark, self.benchmark.units
        count = len({case.subject for case in self.cases})
        whole = len(benchmark.cases)
        part = f"all {whole}" if len(self.cases) == whole else f"{len(self.cases)} of {whole}"
        few = f"; of so few {units} they are too narrow" if count < _FEW else ""
        told = [
            f"{benchmark.name}: {count} {units}, {part} prompts, {self.protocol.images} pictures of each prompt",
            f"intervals hold 95% of bootstrap means over {units}{few}",
            f"protocol {self.protocol.title}: "
            + "; ".join(
                f"{m.name} by {m.kind}{f' of {m.path}' if m.path else ''}" for m in self.measures.metrics.values()
            ),
        ]
        return told + [f"{name} is left out: {reason}" for name, reason in self.measures.left_out.items()]


@dataclass(frozen=True)
class Evaluated:
    """A system with all its scores and the folder of its pictures."""

    system: System
    scores: Scores
    pictures: PictureFolder


def open_task(
    benchmark: str,
    *,
    two_subjects: bool = False,
    combined: Path | None = None,
    subjects: Sequence[str] = (),
    prompts: Sequence[int] = (),
    protocol: str = "published",
    images: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
) -> Task:
    """Read the protocol and the benchmark. Raises ConfigError, DataError or ModelError, before anything is loaded."""
    read = load_protocol(protocol, images=images, steps=steps, seed=seed)
    opened = open_benchmark(benchmark, two_subjects=two_subjects, combined=combined)
    process, processes = _share()
    return Task(opened, select(opened, subjects, prompts), Measures.of(read, opened), process, processes)


def evaluate_on(
    given: str,
    task: Task,
    out: Path | None,
    console: Console,
    *,
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    template: str | None = None,
) -> None:
    """`cgrpo evaluate` on a benchmark: a folder with pictures, scores, summary.json and table.md."""
    template = TEMPLATE if template is None else template
    check_template(template, task.protocol.images)
    system = find_system(given, files, overrides, template)
    folder = out or (system.run / "benchmark" if system.run else Path("evaluations") / system.name)
    found = evaluate_system(system, task, folder, console)
    if found is not None:
        show(console, found.scores, task.notes)
        console.print(f"look at {folder / 'table.md'}, summary.json, {found.pictures.root}", soft_wrap=True)


def evaluate_system(system: System, task: Task, out: Path, console: Console) -> Evaluated | None:
    """Draw and score what the folder `out` does not hold yet; None where other processes still have work to do.

    An earlier evaluation by the same measures is only read. Raises ConfigError where the folder is of something else,
    and DataError where pictures of another system are missing.
    """
    measures, images = task.measures, task.protocol.images
    settings: dict[str, object] = {"benchmark": task.benchmark.digest, "metrics": measures.settings()}
    if system.evaluation is not None:
        folder = EvaluationFolder(system.evaluation)
        kept = folder.settings() or {}
        if difference(kept, settings) is None:
            found = collect(system, task, folder)
            if found is not None:
                return found
    source = system.pictures
    if source is None:
        settings |= {"seed": task.protocol.seed, "steps": task.protocol.steps}
    else:
        source.check(task.cases, images)
    folder = EvaluationFolder(out, task.process)
    folder.begin({**settings, "system": system.settings()})
    if source is None:
        source = folder.pictures
        _draw(system, task, folder, console)
    records = folder.records()
    todo = unscored(source, task.own, measures, records)
    if todo:
        with _progress(console, f"{system.name}: scoring {len(todo) * images} pictures", len(todo)) as advance:
            device = device_of(system.config.policy.device)
            score_cases(todo, task.benchmark, source, measures, device, folder, advance)
    found = collect(replace(system, pictures=source), task, folder)
    if found is None:
        left = len(unscored(source, task.cases, measures, folder.records()))
        console.print(f"{system.name}: {left} subjects and prompts are left to other processes", markup=False)
        return None
    sums = {"system": system.name, "benchmark": task.benchmark.name, "protocol": task.protocol.model_dump(mode="json"),
            "left out": measures.left_out, **summary(found.scores)}  # fmt: skip
    write_json(out / "summary.json", sums)
    write_bytes(out / "table.md", f"# {system.name}\n\n{as_markdown(found.scores, task.notes)}".encode())
    return found


def collect(system: System, task: Task, folder: EvaluationFolder) -> Evaluated | None:
    """All scores of the system's pictures as they are now; None where any is missing."""
    source = system.pictures or folder.pictures
    records, images = folder.records(), task.protocol.images
    values: dict[str, list[list[float]]] = {name: [] for name in task.measures.names}
    for case in task.cases:
        scores = records.scores(case, checksums(source, case, images))
        if any(name not in scores for name in values):
            return None
        for name, column in values.items():
            column.append(scores[name])
    return Evaluated(system, Scores(task.cases, values), source)


def _draw(system: System, task: Task, folder: EvaluationFolder, console: Console) -> None:
    todo = undrawn(folder, task.own, task.protocol.images, folder.records())
    count = sum(len(indices) for _, indices in todo)
    if not count:
        return
    if task.process == 0:
        # A judge that cannot be loaded should be known before the drawing, which may take days.
        for metric in task.measures.metrics.values():
            build_reward(metric.reward(), "cpu")
    with _progress(console, f"{system.name}: drawing {count} pictures", count) as advance:
        steps, seed = task.protocol.steps, task.protocol.seed
        draw(system.open(), task.benchmark, todo, folder, steps=steps, seed=seed, on_picture=advance)
    gc.collect()  # the policy's memory, for the judges
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _share() -> tuple[int, int]:
    """(number of this process, how many there are) as launchers such as torchrun and accelerate tell them.

    Makes the accelerator of that number on this machine the present one. Raises ConfigError where they make no sense.
    """
    try:
        process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error}); unset them") from error
    if not 0 <= process < processes:
        raise ConfigError(f"RANK is {process} of WORLD_SIZE {processes}; it must be below it")
    if processes > 1 and torch.accelerator.is_available():
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    return process, processes


@contextmanager
def _progress(console: Console, title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, a few lines in a log; what is yielded is called after each of `total` steps."""
    if console.is_terminal:
        with Progress(console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
        return
    console.print(title, soft_wrap=True, markup=False)
    done, every = 0, max(1, total // _LINES)

    def advance() -> None:
        nonlocal done
        done += 1
        if done % every == 0 and total > 5 * _LINES:
            console.print(f"{done}/{total}")
            console.file.flush()

    yield advance
