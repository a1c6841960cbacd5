"""Command line of the iteration benchmark: `python -m benchmarks.iteration`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import ConfigOption, SetOption, one_line_errors, quiet


def main(
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

    [dim]python -m benchmarks.iteration --against policy.dtype=bfloat16[/dim]
    """
    quiet()
    with one_line_errors():
        from customized_grpo.config.loading import load_config

        rival = load_config(config, [*(set_ or []), *against]) if against else None
        resolved = load_config(config, set_ or [])
        from benchmarks.iteration.bench import bench as run_bench

        run_bench(resolved, rival, out, Console(), repeats=repeats, growing=growth, alone=alone)


if __name__ == "__main__":
    typer.run(main)
