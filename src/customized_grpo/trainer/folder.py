"""The folder of a run. Names that begin with a dot are incomplete or locks.

RUN/config.yaml        resolved configuration
RUN/metrics.jsonl      one record per iteration; tensorboard/ (train.trackers) has the same
RUN/checkpoints/       state from which the run is resumed
RUN/starts.jsonl       one line per start or resumption: versions, hardware
RUN/samples/           the same held-out pairs, generated every few iterations
RUN/groups/            best and worst group every few iterations
RUN/evaluation/        held-out images and scores: base, tuned
RUN/lora/              trained weights, as diffusers' `load_lora_weights` reads them
RUN/report.html        all of it on one page
RUN/*.png              before and after, curves, identity-prompt plane, schedule of weights
"""

import itertools
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.config.reading import read_file
from customized_grpo.trainer.locking import LOCK
from customized_grpo.utils.records import check_regular, is_partial

LORA, CONFIG, METRICS, STARTS = "lora", "config.yaml", "metrics.jsonl", "starts.jsonl"
CHECKPOINTS, EVALUATION = "checkpoints", "evaluation"
_FILES = (CONFIG, METRICS, STARTS, LOCK)
_FOLDERS = (CHECKPOINTS, EVALUATION, LORA, "samples", "groups", "tensorboard", "benchmark")
_RESULTS = ("report.html", "before-after.png", "curves.png", "plane.png", "weights.png")
#: diffusers' name of the file in LORA; importing it from there would take seconds.
LORA_FILE = "pytorch_lora_weights.safetensors"


def new_folder(base: Path) -> Path:
    """Return an unused name for a run in `base`: the time, with a number if needed."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = itertools.chain([stamp], (f"{stamp}_{n}" for n in itertools.count(2)))
    return next(base / name for name in names if not (base / name).exists())


def make_folder(folder: Path) -> Path:
    """Create a folder of a default name; if another run has taken the name since, one of another name."""
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = new_folder(folder.parent)
        else:
            return folder


def check_unused(run: Path) -> None:
    """Raise ConfigError if the folder of a new run holds more than a killed process leaves before it begins."""
    if not run.exists() and any(os.path.lexists(one) and not one.is_dir() for one in (run, *run.parents)):
        raise ConfigError(f"{run}: no folder can be made there; give another --out")
    used = run.exists() and (
        not run.is_dir() or any(not path.name.startswith(LOCK) and not is_partial(path) for path in run.iterdir())
    )
    if used:
        raise ConfigError(f"{run}: holds something already; give another --out, or --resume {run}")


def open_run(run: Path) -> Config:
    """Return the configuration with which a run was started. Raises ConfigError if the folder is not that of a run."""
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run}: holds no {CONFIG}; give the folder of a run")
    if not read_file(run / CONFIG)[0]:
        raise ConfigError(f"{run / CONFIG}: is empty; restore it: a run's own settings are never the defaults")
    return load_config(run / CONFIG)


def check_run_folder(run: Path) -> None:
    """Raise ConfigError if something in a run's folder is not of the kind that the run writes there."""
    for names, is_kind, kind in ((_FILES, Path.is_file, "file"), (_FOLDERS, Path.is_dir, "folder")):
        for name in names:
            path = run / name
            # Folders may be elsewhere, but a link to the LoRA would be replaced by a folder.
            linked = path.is_symlink() and (kind == "file" or name == LORA)
            if linked or (os.path.lexists(path) and not is_kind(path)):
                found = "a symbolic link" if path.is_symlink() else f"not a {kind}"
                raise ConfigError(f"{path}: is {found}; replace it by the {kind} of the run, or remove it")


def check_output(
    path: Path, option: str = "--out", *, folder: bool = False, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Raise ConfigError, before any work, unless a command may write the file, or new `folder`, that an option names.

    Only regular files are replaced, with `overwrite`, and none of the `inputs` that the command reads, or of a run.
    """
    where = f"{option} {path}"
    if any(above.exists() and not above.is_dir() for above in path.parents):
        raise ConfigError(f"{where}: cannot be written there; give a name in a folder")
    if folder and os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{where}: is not empty; give another name")
    if not folder and path.is_dir():
        raise ConfigError(f"{where}: cannot be written there; give a file's name in a folder")
    if not folder:
        check_regular(path, where)
    if run := _run_of(path.resolve()):
        raise ConfigError(f"{where}: belongs to the run {run}; give another name")
    if folder or not path.exists():
        return
    if any(one.exists() and path.samefile(one) for one in inputs):
        raise ConfigError(f"{where}: is an input of this command; give another name")
    if not overwrite:
        raise ConfigError(f"{where}: exists; give another name, or --overwrite")


def _run_of(path: Path) -> Path | None:
    """Return the run that a file or folder belongs to, if any."""
    for run in path.parents:
        if (run / CONFIG).is_file() and any((run / name).exists() for name in (METRICS, STARTS, LORA, CHECKPOINTS)):
            first = path.relative_to(run).parts[0]
            return run if first in (*_FILES, *_FOLDERS, *_RESULTS) else None
    return None
