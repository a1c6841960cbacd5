"""Commands that plan a run, and show settings and the installation."""

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.app import SetOption, Settings, command
from customized_grpo.utils.terminal import plain_console


@command
def plan(
    config: Annotated[
        list[Path] | None, typer.Argument(help="YAML files with settings; later ones override earlier ones.")
    ] = None,
    set_: SetOption = None,
    memory: Annotated[str | None, typer.Option(help="Memory of the device, such as 24GB. Default: this one's.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=65536, help="Number of processes, one device each.")] = 1,
    references: Annotated[int, typer.Option(min=0, max=64, help="Reference images per pair.")] = 1,
) -> None:
    """Estimate a run's memory without loading anything; refuse one that cannot fit, with settings that can.

    [dim]cgrpo plan recipes/kontext-dev.yaml recipes/hardware/24gb.yaml --memory 24GB[/dim]
    """
    from customized_grpo.config.loading import load_config

    resolved = load_config(config, set_ or [])
    from customized_grpo.planning import plan_run

    plan_run(resolved, plain_console(), memory=memory, processes=processes, references=references)


@command
def settings(
    part: Annotated[str | None, typer.Argument(help="A section or key, such as [b]train[/b]. Default: all.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md.")] = False,
) -> None:
    """Show settings: allowed values, default, meaning.

    [dim]cgrpo settings method[/dim]
    """
    from customized_grpo.cli.information import describe_settings, settings_page
    from customized_grpo.config import ConfigError

    if markdown and part is not None:
        raise ConfigError(f"--markdown prints all settings; remove {part}")
    if markdown:
        typer.echo(settings_page(), nl=False)
    else:
        describe_settings(plain_console(), part)


@command
def info(settings: Settings) -> None:
    """Show versions, the device, embedded models, and each setting with its value and origin.

    [dim]cgrpo info --config run.yaml --set policy.height=768[/dim]
    """
    from customized_grpo.config.loading import resolve_config

    resolved = resolve_config(settings.files, settings.overrides)
    from customized_grpo.cli.information import describe

    describe(plain_console(), resolved)
