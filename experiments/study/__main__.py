"""Command line of the study: `python -m experiments.study PLAN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from customized_grpo.cli.app import one_line_errors, quiet
from customized_grpo.config import ConfigError
from customized_grpo.data import open_dataset
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.parts import policy_with_adapter
from customized_grpo.utils.records import write_bytes, write_json
from customized_grpo.utils.terminal import plain_console
from experiments.study.figures import draw_gradients
from experiments.study.gradients import gradient_evidence, other_than, read_evidence
from experiments.study.plan import StudyConfig, StudyRun, load_study, plan
from experiments.study.report import GRADIENTS, gradients_tables, write_report
from experiments.study.results import read_results
from experiments.study.runner import run_all


def main(
    plan: Annotated[Path, typer.Argument(help="YAML file of the study: rows of settings, seeds.")],
    out: Annotated[Path, typer.Option(help="Folder of the study. Runs that it contains are not repeated.")] = Path(
        "runs/study"
    ),
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; by default one for each GPU, or one on the CPU.")
    ] = None,
    report_only: Annotated[bool, typer.Option(help="Train nothing; report the results in the folder.")] = False,
    gradients_only: Annotated[
        bool, typer.Option(help="Train nothing; measure the two roles' gradients at the base, step by step.")
    ] = False,
    at: Annotated[
        Path | None, typer.Option(help="With --gradients-only: finished run whose policy is measured instead.")
    ] = None,
) -> None:
    """Compare ways of training over seeds: results as JSON lines, a table and figures. Run again to continue.

    [dim]python -m experiments.study recipes/studies/embedded.yaml --processes 2[/dim]
    """
    quiet()
    with one_line_errors():
        if report_only and gradients_only:
            raise ConfigError("--report-only and --gradients-only exclude each other; give one")
        if at is not None and not gradients_only:
            raise ConfigError("--at needs --gradients-only; give both, or omit --at")
        if gradients_only:
            measure_gradients(plan, out, plain_console(), at)
        else:
            run_study(plan, out, processes, plain_console(), report_only=report_only)


def run_study(path: Path, out: Path, processes: int | None, console: Console, *, report_only: bool = False) -> None:
    """Run the missing runs of a study and report all results.

    Args:
        path: YAML file of the study.
        out: Folder of the study.
        processes: Runs side by side; one for each GPU if None.
        console: Console to print to.
        report_only: Train nothing; only results.jsonl is needed.

    Raises:
        ConfigError: The file, a row or the folder does not fit, before anything is run; one line for each problem.
    """
    study = load_study(path)
    runs = plan(study)
    ours = next(run for run in runs if run.row == study.ours)
    if report_only:
        results = read_results(out)
        if not any(result.row in study.rows for result in results):
            raise ConfigError(f"{out}: contains no results of this study's rows; run the study without --report-only")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / "study.yaml", path.read_bytes())
        results = run_all(runs, out, processes or max(1, torch.cuda.device_count()), console)
        _measure_gradients(study, ours, out, console)
    table, verdict = write_report(study, ours.config, results, out)
    console.print(table)
    for line in verdict:
        console.print(line, highlight=False)
    files = ("plane-rewards.png", "curves.png", "quadrants.png", "gradients.png", "grid.png", "table.md")
    console.print(f"look at {out}/{', '.join(name for name in files if (out / name).exists())}")


def measure_gradients(path: Path, out: Path, console: Console, at: Path | None = None) -> None:
    """Measure the gradients of the study's own row: gradients.json, its figure and tables.

    Args:
        path: YAML file of the study.
        out: Folder of the study.
        console: Console to print to.
        at: Finished run whose policy is measured; the base if None.

    Raises:
        ConfigError: As for :func:`run_study`; the file asks for no batches; `at` contains no finished run.
        ModelError: The run's weights do not fit the row's policy.
    """
    study = load_study(path)
    if not study.gradient_batches:
        raise ConfigError(f"{path}: gradient_batches is 0, so nothing can be measured; give 2 or more")
    ours = next(run for run in plan(study) if run.row == study.ours)
    out.mkdir(parents=True, exist_ok=True)
    _measure_gradients(study, ours, out, console, at)
    evidence = read_evidence(out / GRADIENTS)
    draw_gradients(out / "gradients.png", evidence)
    console.print(*gradients_tables(evidence))
    console.print(f"look at {out}/gradients.png")


def _measure_gradients(study: StudyConfig, ours: StudyRun, out: Path, console: Console, at: Path | None = None) -> None:
    batches, config, file = study.gradient_batches, ours.config, out / GRADIENTS
    if not batches:
        return
    place = "" if at is None else "/".join(at.resolve().parts[-2:])  # row and seed of a study's run
    if file.exists():
        if (other := other_than(read_evidence(file), config, batches, place)) is not None:
            raise ConfigError(f"{file}: was measured with another {other}; remove it, or give another --out")
        return
    dataset, policy = open_dataset(config.data), policy_with_adapter(config, at)
    rewards = reward_terms(config.rewards, policy.device)
    with Progress(console=console) as progress:
        task = progress.add_task("gradients of the two roles", total=batches)
        evidence = gradient_evidence(config, policy, dataset, rewards, batches, lambda: progress.advance(task))
    write_json(file, evidence.model_copy(update={"at": place}).model_dump())


if __name__ == "__main__":
    typer.run(main)
