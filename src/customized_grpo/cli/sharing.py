"""Commands that hand on what a run has learned: a report, weights for others, a page to try it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import ConfigOption, SetOption, app, one_line_errors


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; RUN/report.html where none is given.")] = None,
) -> None:
    """Write what a run has come to as one HTML file: scores, curves, pictures, warnings. It opens from the disk.

    [dim]cgrpo report runs/mine[/dim]
    """
    with one_line_errors():
        from customized_grpo.trainer.folder import open_run

        config = open_run(run)
        from customized_grpo.reporting import write_report

        Console().print(f"wrote {write_report(config, run, out)}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not there.")],
) -> None:
    """Write a run's LoRA for others: diffusers' file, a model card, the picture of before and after.

    [dim]cgrpo export runs/mine --out my-lora && hf upload me/my-lora my-lora[/dim]
    """
    with one_line_errors():
        from customized_grpo.reporting.lora import export_run

        export_run(run, out)
        Console().print(f"wrote {out}; fill in the TODOs of {out / 'README.md'}, and look at its pictures and prompts")


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not there.")],
    dtype: Annotated[Precision | None, typer.Option(help="Of the weights; policy.dtype where none is given.")] = None,
) -> None:
    """Write the whole pipeline with what a run has learned in its weights.

    [dim]cgrpo merge runs/mine --out my-pipeline --dtype bfloat16[/dim]
    """
    with one_line_errors():
        from customized_grpo.reporting.merge import merge_run

        merge_run(run, out, dtype.value if dtype else None)
        Console().print(f"wrote {out}")


@app.command()
def demo(
    lora: Annotated[Path | None, typer.Option(help="Folder of a finished run to show beside the base model.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets others in who have the token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Open a page: drop a photo, write a prompt, see base and tuned side by side with their scores.

    [dim]cgrpo demo --lora runs/mine[/dim]
    """
    with one_line_errors():
        from customized_grpo.serve.demo import serve_demo

        serve_demo(config or [], set_ or [], lora, host, port, Console())
