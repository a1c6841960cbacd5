"""Commands that plan, compare and measure trainings, and say what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import ConfigOption, SetOption, app, one_line_errors


@app.command()
def study(
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

    [dim]cgrpo study recipes/studies/embedded.yaml --processes 2[/dim]
    """
    with one_line_errors():
        from customized_grpo.config import ConfigError
        from customized_grpo.study import measure_gradients, run_study

        if report_only and gradients_only:
            raise ConfigError("--report-only and --gradients-only exclude each other; give one")
        if at is not None and not gradients_only:
            raise ConfigError("--at belongs to --gradients-only; give both, or leave it out")
        if gradients_only:
            measure_gradients(plan, out, Console(), at)
        else:
            run_study(plan, out, processes, Console(), report_only=report_only)


@app.command()
def plan(
    config: Annotated[
        list[Path] | None, typer.Argument(help="YAML files of what differs, the later over the earlier.")
    ] = None,
    set_: SetOption = None,
    memory: Annotated[
        str | None, typer.Option(help="What the device has, as 24GB; that of the device found, where none is given.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, one device each.")] = 1,
    references: Annotated[int, typer.Option(min=0, help="Reference pictures of a pair.")] = 1,
) -> None:
    """Say what a run takes before anything is loaded, and refuse one that cannot fit, with settings that can.

    [dim]cgrpo plan recipes/kontext-dev.yaml recipes/hardware/24gb.yaml --memory 24GB[/dim]
    """
    with one_line_errors():
        from customized_grpo.config.loading import load_config

        resolved = load_config(config, set_ or [])
        from customized_grpo.planning import plan_run

        plan_run(resolved, Console(), memory=memory, processes=processes, references=references)


@app.command()
def bench(
    config: ConfigOption = None,
    set_: SetOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting to compare with, as [b]policy.dtype=bfloat16[/b]; may be given again.", metavar="KEY=VALUE"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed iterations, of which the median counts.")] = 3,
    growth: Annotated[bool, typer.Option(help="Also measure how time and memory grow with the work.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Leave out one image at a time, the slow shape.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for bench.json.")] = Path("runs/bench"),
) -> None:
    """Measure an iteration, stage by stage: against one image at a time, and against the machine's own peak.

    [dim]cgrpo bench --against policy.dtype=bfloat16[/dim]
    """
    with one_line_errors():
        from customized_grpo.config.loading import load_config

        rival = load_config(config, [*(set_ or []), *against]) if against else None
        resolved = load_config(config, set_ or [])
        from customized_grpo.speed import bench as run_bench

        run_bench(resolved, rival, out, Console(), repeats=repeats, growing=growth, alone=alone)


@app.command()
def settings(
    part: Annotated[
        str | None, typer.Argument(help="A section or key, as [b]train[/b]; all, where none is given.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All of them as the page docs/settings.md.")] = False,
) -> None:
    """Every setting: what it may be, its default, what it means.

    [dim]cgrpo settings method[/dim]
    """
    with one_line_errors():
        from customized_grpo.config import ConfigError
        from customized_grpo.console.information import describe_settings, settings_page

        if markdown and part is not None:
            raise ConfigError(f"--markdown is of all settings; leave out {part}")
        if markdown:
            typer.echo(settings_page(), nl=False)
        else:
            describe_settings(Console(), part)


@app.command()
def info(config: ConfigOption = None, set_: SetOption = None) -> None:
    """What is installed, which device is used, and every setting with the place its value comes from.

    [dim]cgrpo info --config run.yaml --set policy.height=768[/dim]
    """
    with one_line_errors():
        from customized_grpo.config.loading import resolve_config

        resolved = resolve_config(config, set_ or [])
        from customized_grpo.console.information import describe

        describe(Console(), resolved)
