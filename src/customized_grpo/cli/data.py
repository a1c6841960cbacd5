"""Command that writes a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.app import Overwrite, command
from customized_grpo.utils.terminal import plain_console


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
    overwrite: Overwrite = False,
) -> None:
    """Write training pairs for photos of one subject: every prompt of a list with every photo.

    [dim]cgrpo pairs photos --subject corgi --prompts live --out pairs.jsonl --held-out held-out.jsonl[/dim]
    """
    from customized_grpo.config import ConfigError
    from customized_grpo.data.photos import write_pairs
    from customized_grpo.trainer.folder import check_output

    for path, option in ((out, "--out"), (held_out, "--held-out")):
        if path is not None:
            check_output(path, option, overwrite=overwrite, inputs=[*photos.glob("*"), Path(prompts)])
    if held_out is not None and held_out.resolve() == out.resolve():
        raise ConfigError(f"--held-out {held_out}: is the file of --out, too; give another name")
    used, apart = write_pairs(photos, subject, prompts, out, held_out)
    rest = f"; {held_out}: {apart} pairs" if held_out else ""
    plain_console().print(f"wrote {out}: {used} pairs{rest}", soft_wrap=True)
