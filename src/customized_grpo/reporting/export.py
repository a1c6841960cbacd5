"""What an export starts from, a finished run, and where it goes, a folder that is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from customized_grpo.config import Config, ConfigError
from customized_grpo.trainer.checkpoint import checkpointed_iterations
from customized_grpo.trainer.folder import LORA, open_run


def finished_run(run: Path) -> Config:
    """The configuration of a finished run. Raises ConfigError where the folder is none.

    What is taken of it is what its training ended with, RUN/lora; a run whose checkpoints were removed counts as
    finished by that alone.
    """
    config = open_run(run)
    done = checkpointed_iterations(run)
    if not (run / LORA).is_dir() or 0 < done < config.train.iterations:
        raise ConfigError(
            f"{run}: not finished, {done} of {config.train.iterations} iterations are done; "
            f"go on with it by cgrpo train --resume {run}"
        )
    return config


@contextmanager
def new_folder_at(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` once all is written. Raises ConfigError where `out` holds something."""
    check_free(out)
    aside = out.resolve().with_name(f".{out.resolve().name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if out.is_dir():
            out.rmdir()
        aside.replace(out.resolve())
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_free(out: Path) -> None:
    """Raises ConfigError where `out` is a file or holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: holds something already; give another --out")
