"""Evaluation of one system on a benchmark: missing images are generated and scored, then everything is summarised.

An image is a function of (seed, subject, prompt, index) alone. Images go through the model one at a time, so that not
even rounding depends on the others, on the number of processes or on an interruption. Several processes share the cases
without waiting for each other; the one that finds nothing left to do anywhere writes the summary.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from customized_grpo.config import ConfigError
from customized_grpo.data import image_files
from customized_grpo.data.benchmark import Benchmark, Case, open_benchmark, select
from customized_grpo.evaluation.dreambench.folder import (
    TEMPLATE,
    EvaluationFolder,
    Found,
    ImageFolder,
    Record,
    check_template,
    difference,
)
from customized_grpo.evaluation.dreambench.protocol import EvaluationProtocol, Metric, load_protocol
from customized_grpo.evaluation.dreambench.scores import Scores, shown
from customized_grpo.evaluation.dreambench.systems import System, find_system
from customized_grpo.evaluation.files import score_loaded
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import build_reward
from customized_grpo.trainer.rollout import image_noise, own_noise_levels, sample_images
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.pixels import save_image, to_image
from customized_grpo.utils.records import write_bytes, write_json
from customized_grpo.utils.tables import markdown_text
from customized_grpo.utils.terminal import WorkDisplay

_FEW = 10  # subjects: with fewer, bootstrap intervals are too narrow


@dataclass(frozen=True)
class Task:
    """Benchmark, cases and metrics of a command, and the reasons for `skipped` metrics.

    Process number `process` of `processes` works on every `processes`-th case.
    """

    benchmark: Benchmark
    cases: tuple[Case, ...]
    protocol: EvaluationProtocol
    metrics: dict[str, Metric]
    skipped: dict[str, str]
    process: int = 0
    processes: int = 1

    @property
    def own(self) -> tuple[Case, ...]:
        """Cases that this process works on."""
        return self.cases[self.process :: self.processes]

    @property
    def notes(self) -> list[str]:
        """Information for a reader of the scores."""
        units, whole = self.benchmark.units, len(self.benchmark.cases)
        count = len({case.subject for case in self.cases})
        part = f"all {whole}" if len(self.cases) == whole else f"{len(self.cases)} of {whole}"
        few = f"; for so few {units} they are too narrow" if count < _FEW else ""
        scorers = (f"{m.name} by {m.kind}{f' of {m.path}' if m.path else ''}" for m in self.metrics.values())
        return [
            f"{self.benchmark.name}: {count} {units}, {part} prompts, {self.protocol.images} images per prompt",
            f"intervals are 95% bootstrap intervals over {units}{few}",
            f"protocol {self.protocol.title}: {'; '.join(scorers)}",
            *(f"{name} is skipped: {reason}" for name, reason in self.skipped.items()),
        ]

    def unscored(self, source: ImageFolder, cases: Sequence[Case], found: Found) -> list[tuple[Case, list[str]]]:
        """Return the cases that lack scores of their present images, and the names of those scores."""
        known = [found.get((case.key, source.checksums(case, self.protocol.images)), {}) for case in cases]
        lacking = [[name for name in self.metrics if name not in scores] for scores in known]
        return [(case, names) for case, names in zip(cases, lacking, strict=True) if names]


@dataclass(frozen=True)
class Evaluated:
    """A system with its scores and images."""

    system: System
    scores: Scores
    images: ImageFolder


def open_task(
    benchmark: str,
    *,
    two_subjects: bool = False,
    combinations: Path | None = None,
    subject: Sequence[str] | None = None,
    prompt: Sequence[int] | None = None,
    protocol: str = "published",
    images: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
) -> Task:
    """Read the protocol and the benchmark; no model is loaded. Raises ConfigError, DataError or ModelError."""
    read = load_protocol(protocol, images=images, steps=steps, seed=seed)
    opened = open_benchmark(benchmark, two_subjects=two_subjects, combined=combinations)
    cases = select(opened, subject or (), prompt or ())
    return Task(opened, cases, read, *read.measured(opened.masked), *_share())


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
    """Run `cgrpo evaluate` on a benchmark: write a folder with images, scores, summary.json and table.md."""
    template = TEMPLATE if template is None else template
    check_template(template, task.protocol.images)
    system = find_system(given, files, overrides, template)
    folder = out or (system.run / "benchmark" if system.run else Path("evaluations") / system.name)
    found = evaluate_system(system, task, folder, console)
    if found is None:
        return
    table = Table("score", *found.scores.sections)
    for name in found.scores.values:
        cells = [shown(found.scores.estimate(name, kind)) for kind in found.scores.sections.values()]
        table.add_row(Text(name), *map(Text, cells))
    console.print(table)
    for note in task.notes:
        console.print(Text(note), soft_wrap=True)
    console.print(f"look at {folder / 'table.md'}, summary.json, {found.images.root}", soft_wrap=True)


def evaluate_system(system: System, task: Task, out: Path, console: Console) -> Evaluated | None:
    """Generate and score what the folder `out` lacks; None if other processes still have work to do.

    An earlier evaluation by the same metrics is only read. Raises ConfigError for another folder, DataError for images.
    """
    metrics = {name: metric.model_dump(mode="json") for name, metric in task.metrics.items()}
    settings: dict[str, object] = {"benchmark": task.benchmark.digest, "metrics": metrics}
    if system.evaluation is not None:
        earlier = EvaluationFolder(system.evaluation)
        if difference(earlier.settings() or {}, settings) is None and (found := _collect(system, task, earlier)):
            return found
    source = system.images
    if source is None:
        settings |= {"seed": task.protocol.seed, "steps": task.protocol.steps}
    else:
        source.check(task.cases, task.protocol.images)
    folder = EvaluationFolder(out, task.process)
    folder.begin({**settings, "system": system.settings()})
    if source is None:
        source = folder.images
        _generate(system, task, folder, console)
    _score(system, task, source, folder, console)
    found = _collect(replace(system, images=source), task, folder)
    if found is None:
        left = len(task.unscored(source, task.cases, folder.scores()))
        console.print(f"{system.name}: {left} subjects and prompts are left to other processes", markup=False)
        return None
    sums = {"system": system.name, "benchmark": task.benchmark.name, "protocol": task.protocol.model_dump(mode="json"),
            "skipped": task.skipped, **found.scores.summary()}  # fmt: skip
    write_json(out / "summary.json", sums)
    write_bytes(out / "table.md", f"# {markdown_text(system.name)}\n\n{found.scores.markdown(task.notes)}".encode())
    return found


def _collect(system: System, task: Task, folder: EvaluationFolder) -> Evaluated | None:
    """Return all scores of the system's present images, or None if any is missing."""
    source, scores = system.images or folder.images, folder.scores()
    found = [scores.get((case.key, source.checksums(case, task.protocol.images)), {}) for case in task.cases]
    if any(name not in one for one in found for name in task.metrics):
        return None
    return Evaluated(system, Scores(task.cases, {name: [one[name] for one in found] for name in task.metrics}), source)


def _generate(system: System, task: Task, folder: EvaluationFolder, console: Console) -> None:
    """Generate the images that are missing, damaged, or other than those that were scored."""
    scored: dict[str, set[tuple[int | None, ...]]] = {}
    for key, checksums in folder.scores():
        scored.setdefault(key, set()).add(checksums)
    todo = []
    for case in task.own:
        now = folder.images.checksums(case, task.protocol.images)
        for index, checksum in enumerate(now):
            known = {checksums[index] for checksums in scored.get(case.key, ()) if index < len(checksums)}
            if (known and checksum not in known) or not folder.images.sound(case, index):
                todo.append((case, index))
    if not todo:
        return
    if task.process == 0:  # a scorer that cannot be loaded should be reported before generating, which may take days
        for metric in task.metrics.values():
            if metric.against != "others":  # by the model of another metric
                build_reward(metric.reward(), "cpu")
    console.print(f"{system.name}: generating {len(todo)} images", soft_wrap=True, markup=False)
    with WorkDisplay(system.name, len(todo), console) as display:
        policy = system.open()
        encoded = None
        for done, (case, index) in enumerate(todo, start=1):
            if case is not encoded:
                pair, encoded = task.benchmark.shown(case), case
                conditions = policy.encode(pair.prompt, pair.references)
                sigmas = own_noise_levels(policy, task.protocol.steps, conditions)
            shape = conditions.latent_shape
            noise = image_noise(policy, 1, task.protocol.seed, "benchmark", case.key, index, shape=shape)
            (image,) = sample_images(policy, conditions, noise, sigmas)
            save_image(to_image(image), folder.images.path(case, index))
            display.update(done)
    del policy, conditions
    gc.collect()  # the policy's memory, for the scorers
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _score(system: System, task: Task, source: ImageFolder, folder: EvaluationFolder, console: Console) -> None:
    """Score the images of each case together, so that scores do not depend on what else is scored, and store them."""
    todo = task.unscored(source, task.own, folder.scores())
    if not todo:
        return
    device, images = device_of(system.config.policy.device), task.protocol.images
    rewards: dict[str, Reward] = {}  # by content, because diversity is measured by the model of another metric
    console.print(f"{system.name}: scoring {len(todo) * images} images", soft_wrap=True, markup=False)
    with WorkDisplay(system.name, len(todo), console) as display:
        for done, (case, names) in enumerate(todo, start=1):
            checksums = source.checksums(case, images)
            loaded = [image_files.load(source.path(case, index)) for index in range(images)]
            scores = {}
            for name in names:
                metric = task.metrics[name]
                content = metric.model_dump_json(exclude={"name", "against"})
                if content not in rewards:
                    rewards[content] = build_reward(metric.reward(), device)
                scores[name] = measure(rewards[content], metric, loaded, task.benchmark, case)
            folder.add(Record(case=case.key, images=[one for one in checksums if one is not None], scores=scores))
            display.update(done)


def measure(
    reward: Reward, metric: Metric, images: Sequence[Image.Image], benchmark: Benchmark, case: Case
) -> list[float]:
    """Score the images of a case by one metric.

    Identity is the mean over the case's subjects; diversity of an image is 100 minus its mean similarity to the others.
    """
    if metric.against == "others":
        others = [tuple(image for j, image in enumerate(images) if j != i) for i in range(len(images))]
        pairs = [Pair(f"{case.key}/without-{i}", case.text, o, (None,) * len(o)) for i, o in enumerate(others)]
        return [100 - value for value in score_loaded(reward, images, pairs)]
    by_photos = metric.role == "identity" and metric.against == "photos"
    views = benchmark.views(case) if by_photos else [benchmark.shown(case)]
    scores = [score_loaded(reward, images, [view] * len(images)) for view in views]
    return torch.tensor(scores).mean(0).tolist()


def _share() -> tuple[int, int]:
    """Return the number of this process and of all processes, as launchers set them; select its accelerator."""
    process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= process < processes:
        raise ConfigError(f"RANK is {process} of WORLD_SIZE {processes}; it must be below it")
    if processes > 1 and torch.accelerator.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    return process, processes
