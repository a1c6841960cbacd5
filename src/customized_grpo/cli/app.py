"""The application itself, options that commands share, and errors in one line with exit code 2."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.usage import OneLineGroup
from customized_grpo.utils.stopping import Stopped
from customized_grpo.utils.terminal import print_error, told_os_error

app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Tune a subject-driven image generator to keep [b]this[/b] subject and follow [b]that[/b] prompt.\n\n"
    "Start with [b]cgrpo train[/b]: it tunes the small model that comes with the package, in minutes, on a CPU.",
)

ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML file of what differs from the defaults; may be given again, the later over it. Without one: "
        "[b]embedded[/b], the recipe of the embedded model, unless --set names another model.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="One setting, as [b]train.learning_rate=1e-4[/b]; may be given again.",
        metavar="KEY=VALUE",
    ),
]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a command raises, as lines for people: bad input 2, a request to stop its own code."""
    try:
        yield
    except OSError as error:
        print_error(told_os_error(error))
        raise typer.Exit(2) from error
    except ValueError as error:
        for line in getattr(error, "problems", None) or [str(error) or type(error).__name__]:
            print_error(line)
        raise typer.Exit(2) from error
    except Stopped as stopped:
        print_error(str(stopped))
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        print_error("interrupted; what was saved is kept")
        raise typer.Exit(130) from None


@app.callback()
def quiet() -> None:
    """Keep the libraries' advice out of the progress; a user's own settings win."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.WARNING)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="PIL")  # of pictures that are refused, or read all the same
