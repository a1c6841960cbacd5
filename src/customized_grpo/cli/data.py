"""Command that writes a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import command


@command
def pairs(
    photos: Annotated[Path, typer.Argument(help="Folder of photos of one subject.")],
    subject: Annotated[str, typer.Option(help='Class word of the subject, such as "corgi".')],
    out: Annotated[Path, typer.Option(help="JSON lines file to write.")] = Path("pairs.jsonl"),
    prompts: Annotated[
        str,
        typer.Option(
            help="Built-in list [b]object[/b] or [b]live[/b], or a text file: one prompt per line, with {subject}."
        ),
    ] = "object",
    held_out: Annotated[
        Path | None, typer.Option(help="File for every fifth prompt, for evaluation.data.path; --out then lacks them.")
    ] = None,
) -> None:
    """Write training pairs for photos of one subject: every prompt of a list with every photo.

    [dim]cgrpo pairs photos --subject corgi --prompts live --out pairs.jsonl --held-out held-out.jsonl[/dim]
    """
    from customized_grpo.data.photos import write_pairs

    used, apart = write_pairs(photos, subject, prompts, out, held_out)
    Console().print(f"wrote {out}: {used} pairs" + (f"; {held_out}: {apart} pairs" if held_out else ""), soft_wrap=True)
