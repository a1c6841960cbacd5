"""Command line of the study: `python -m experiments.study PLAN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import one_line_errors, quiet


def main(
    plan: Annotated[Path, typer.Argument(help="YAML file of the study: rows of settings, seeds.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; what it holds already is not run again.")] = Path(
        "runs/study"
    ),
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; one for each GPU where none is given.")
    ] = None,
    report_only: Annotated[bool, typer.Option(help="Run nothing; draw what the folder holds.")] = False,
    gradients_only: Annotated[
        bool, typer.Option(help="Train nothing; measure the two roles' gradients at the base, step by step.")
    ] = False,
    at: Annotated[
        Path | None, typer.Option(help="Of --gradients-only: a finished run, at whose policy to measure instead.")
    ] = None,
) -> None:
    """Compare ways of training over seeds: results as JSON lines, a table and pictures. Run again, it goes on.

    [dim]python -m experiments.study recipes/studies/embedded.yaml --processes 2[/dim]
    """
    quiet()
    with one_line_errors():
        from customized_grpo.config import ConfigError
        from experiments.study import measure_gradients, run_study

        if report_only and gradients_only:
            raise ConfigError("--report-only and --gradients-only exclude each other; give one")
        if at is not None and not gradients_only:
            raise ConfigError("--at belongs to --gradients-only; give both, or leave it out")
        if gradients_only:
            measure_gradients(plan, out, Console(), at)
        else:
            run_study(plan, out, processes, Console(), report_only=report_only)


if __name__ == "__main__":
    typer.run(main)
