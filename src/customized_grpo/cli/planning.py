"""Commands that plan a run and describe the settings and the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import ConfigOption, SetOption, app, one_line_errors


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
        from customized_grpo.cli.information import describe_settings, settings_page
        from customized_grpo.config import ConfigError

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
        from customized_grpo.cli.information import describe

        describe(Console(), resolved)
