"""A study from its YAML file to its pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from customized_grpo.config import ConfigError
from customized_grpo.data import open_dataset
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.parts import policy_with_adapter
from customized_grpo.utils.records import write_bytes
from experiments.study.gradients import gradient_evidence, other_than, read_evidence, save_evidence
from experiments.study.plan import StudyConfig, StudyRun, load_study, plan
from experiments.study.report import GRADIENTS, draw_gradients, gradients_tables, write_report
from experiments.study.results import read_results
from experiments.study.runner import default_processes, run_all


def run_study(path: Path, out: Path, processes: int | None, console: Console, *, report_only: bool = False) -> None:
    """Run what is missing of the study of a YAML file, then show all there is.

    `report_only` trains nothing and needs results.jsonl alone. Raises ConfigError, one line for each problem,
    before anything is run where the file, a row or the folder does not fit.
    """
    study = load_study(path)
    runs = plan(study)
    ours = next(run for run in runs if run.row == study.ours)
    if report_only:
        results = read_results(out)
        if not any(result.row in study.rows for result in results):
            raise ConfigError(f"{out}: holds no results of this study's rows; run the study without --report-only")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / "study.yaml", path.read_bytes())
        results = run_all(runs, out, processes or default_processes(), console)
        _measure_gradients(study, ours, out, console)
    table, told = write_report(study, ours.config, results, out)
    console.print(table)
    for line in told:
        console.print(line, highlight=False)
    pictures = ("plane-rewards.png", "curves.png", "quadrants.png", "gradients.png", "grid.png", "table.md")
    console.print(f"look at {out}/{', '.join(name for name in pictures if (out / name).exists())}")


def measure_gradients(path: Path, out: Path, console: Console, at: Path | None = None) -> None:
    """The gradients of the study's own row alone: gradients.json and its picture, and a table of it.

    They are those at the base, or, by the settings of that row, at what the run in the folder `at` has learned.

    Raises:
        ConfigError: as :func:`run_study` does; the file asks for no batches; `at` holds no finished run.
        ModelError: what the run has learned does not fit the row's policy.
    """
    study = load_study(path)
    if not study.gradient_batches:
        raise ConfigError(f"{path}: gradient_batches is 0, of which nothing can be told; give 2 or more")
    ours = next(run for run in plan(study) if run.row == study.ours)
    out.mkdir(parents=True, exist_ok=True)
    _measure_gradients(study, ours, out, console, at)
    evidence = read_evidence(out / GRADIENTS)
    draw_gradients(out, evidence)
    console.print(*gradients_tables(evidence))
    console.print(f"look at {out}/gradients.png")


def _measure_gradients(study: StudyConfig, ours: StudyRun, out: Path, console: Console, at: Path | None = None) -> None:
    if not study.gradient_batches:
        return
    config = ours.config
    place = "" if at is None else "/".join(at.resolve().parts[-2:])  # row and seed, of a study's run
    if (out / GRADIENTS).exists():
        kept = read_evidence(out / GRADIENTS)
        if (other := other_than(kept, config, study.gradient_batches, place)) is not None:
            raise ConfigError(f"{out / GRADIENTS}: was measured with another {other}; remove it, or give another --out")
        return
    dataset, policy = open_dataset(config.data), policy_with_adapter(config, at)
    rewards = reward_terms(config.rewards, policy.device)
    with Progress(console=console) as progress:
        task = progress.add_task("gradients of the two roles", total=study.gradient_batches)
        evidence = gradient_evidence(
            config, policy, dataset, rewards, study.gradient_batches, lambda done: progress.update(task, completed=done)
        )
    save_evidence(out / GRADIENTS, replace(evidence, at=place))
