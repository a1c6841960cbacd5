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

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.trainer.locking import LOCK
from customized_grpo.utils.records import is_partial

LORA, CONFIG, METRICS = "lora", "config.yaml", "metrics.jsonl"
CHECKPOINTS, EVALUATION = "checkpoints", "evaluation"
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
    used = run.exists() and (
        not run.is_dir() or any(not path.name.startswith(LOCK) and not is_partial(path) for path in run.iterdir())
    )
    if used:
        raise ConfigError(f"{run}: holds something already; give another --out, or --resume {run}")


def open_run(run: Path) -> Config:
    """Return the configuration with which a run was started.

    Raises:
        ConfigError: The folder is not that of a run.
    """
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run}: holds no {CONFIG}; give the folder of a run")
    return load_config(run / CONFIG)
