"""The application, options that commands share, and errors in one line with exit code 2."""

import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from typer.core import TyperGroup

from customized_grpo import __version__
from customized_grpo.utils.hub import first_line
from customized_grpo.utils.interrupts import CODE, interrupts
from customized_grpo.utils.memory import is_out_of_memory
from customized_grpo.utils.named import own_place
from customized_grpo.utils.stopping import Stopped
from customized_grpo.utils.terminal import describe_os_error, print_error, print_errors, print_notice


class OneLineGroup(TyperGroup):
    """Commands whose usage errors are one line, which names the command, instead of a page of usage."""

    def main(self, *arguments: Any, **further: Any) -> Any:
        """Run the command, print a usage error as one line, and exit with its code."""
        if not further.get("standalone_mode", True):
            return super().main(*arguments, **further)
        try:
            code = super().main(*arguments, **{**further, "standalone_mode": False})
        except Exception as error:
            if interrupts:
                _leave_interrupted()
            # Not by type: some releases of Typer contain their own copy of Click, with errors of its own.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            if type(error).__name__ != "NoArgsIsHelpError":  # which has shown the help
                context = getattr(error, "ctx", None)
                command = f"{context.command_path}: " if context is not None else ""
                print_error(f"{command}{message().rstrip('.')}; see --help")
            sys.exit(getattr(error, "exit_code", 2))
        if code == CODE and interrupts:  # before the command itself began
            _leave_interrupted()
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train a subject-driven image generator to keep [b]this[/b] subject and follow [b]that[/b] prompt.\n\n"
    "Start with [b]cgrpo train[/b]: it trains the small model that comes with the package, in minutes, on a CPU.",
)

#: Largest number of denoising steps, that of `rollout.steps`; the configuration takes long to import.
MOST_STEPS = 1000

ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML file with settings; may be repeated, later files override earlier ones. Without it: "
        "[b]embedded[/b], the recipe of the embedded model, unless --set names another model.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="One setting, such as [b]train.learning_rate=1e-4[/b]; may be repeated.", metavar="KEY=VALUE"
    ),
]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
#: Environment variable that stands for --debug.
DEBUG = "CGRPO_DEBUG"
_Debug = Annotated[bool, typer.Option("--debug", envvar=DEBUG, help="Show the whole traceback of an error.")]


@dataclass(frozen=True)
class Settings:
    """Options that choose a configuration."""

    config: ConfigOption = None
    set_: SetOption = None

    @property
    def files(self) -> list[Path]:
        """Configuration files, in the order in which they are merged."""
        return self.config or []

    @property
    def overrides(self) -> list[str]:
        """Overrides of single settings, "key=value"."""
        return self.set_ or []


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add a command to the application, named after the function, whose errors are shown as lines.

    A parameter that is annotated with a dataclass stands for the options that its fields declare.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if not is_dataclass(group := hints[name]):
            parameters.append(parameter.replace(annotation=group, kind=parameter.KEYWORD_ONLY))
            continue
        groups[name] = group
        types = get_type_hints(group, include_extras=True)
        for field in fields(group):
            made = parameter.replace(name=field.name, default=field.default, annotation=types[field.name])
            parameters.append(made.replace(kind=parameter.KEYWORD_ONLY))

    @wraps(function)
    def run(**given: Any) -> None:
        debug = given.pop("debug")
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        with one_line_errors(debug):
            function(**given)

    parameters.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug))
    del run.__wrapped__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(function.__name__.replace("_", "-"))(run)
    return run


@contextmanager
def one_line_errors(debug: bool | None = None) -> Iterator[None]:
    """Print errors as lines and exit: 2 for bad input, the signal's own code for a request to stop.

    With `debug`, by default by the environment variable, the traceback comes first. A user's own exit is an error too.
    """
    try:
        yield
    except (OSError, ValueError, SystemExit, MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | RuntimeError) and not is_out_of_memory(error):
            raise
        if os.environ.get(DEBUG, "0") not in ("", "0", "false") if debug is None else debug:
            traceback.print_exc()
        if isinstance(error, OSError):
            lines = [describe_os_error(error)]
        elif isinstance(error, SystemExit):
            lines = [f"the command was ended by a call of exit, with code {error.code!r}; remove the call"]
        elif isinstance(error, ValueError):
            lines = getattr(error, "problems", None) or [str(error) or type(error).__name__]
        else:
            lines = [f"out of memory ({first_line(error)}); use fewer or smaller images, or see cgrpo plan"]
        known = type(error).__module__.startswith(("customized_grpo", "experiments", "benchmarks"))
        place = own_place(error) if isinstance(error, OSError | ValueError | SystemExit) and not known else None
        print_errors([f"{line}, at {place}" if place else line for line in lines])
        raise typer.Exit(2) from error
    except Stopped as stopped:
        print_notice(str(stopped))
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        _leave_interrupted()


def _leave_interrupted() -> NoReturn:
    print_notice("interrupted; saved files remain")
    raise SystemExit(CODE)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cgrpo {__version__}")
        raise typer.Exit


@app.callback()
def quiet(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Silence advice and progress bars of libraries; a user's own settings take precedence."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.WARNING)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="PIL")  # about images that are refused, or read all the same
