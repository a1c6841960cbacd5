"""The folder of a run: what is in it, a new one, one that is there.

RUN/config.yaml        the resolved configuration
RUN/metrics.jsonl      one record of each iteration; tensorboard/ (of train.trackers) holds the same
RUN/checkpoints/       what a resumed run starts from
RUN/starts.jsonl       one line for each start or resumption: versions, hardware
RUN/samples/           the same held-out pairs, drawn every few iterations
RUN/groups/            the best and the worst group of every few iterations
RUN/evaluation/        held-out pictures and scores: base, tuned
RUN/lora/              the adapter, as diffusers' `load_lora_weights` reads it
RUN/report.html        all of it in one page
RUN/*.png              before and after, curves, the identity x prompt plane, the schedule of weights
RUN/.lock              the process that has it

What is half written has a name that begins with a dot.
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
#: In LORA, by diffusers' name; from there it would take seconds to import.
LORA_FILE = "pytorch_lora_weights.safetensors"


def new_folder(base: Path) -> Path:
    """A name for a run that is not taken: the time, and a number where that is not enough."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = itertools.chain([stamp], (f"{stamp}_{n}" for n in itertools.count(2)))
    return next(base / name for name in names if not (base / name).exists())


def check_unused(run: Path) -> None:
    """Raises ConfigError where the folder of a new run holds something already."""
    if run.exists() and (not run.is_dir() or any(map(_is_result, run.iterdir()))):
        raise ConfigError(f"{run}: holds something already; give another --out, or --resume {run}")


def _is_result(path: Path) -> bool:
    """Whether a path of a run's folder is more than what a process leaves that was killed before it began."""
    return path.name != LOCK and not is_partial(path)


def open_run(run: Path) -> Config:
    """The configuration that a run was started with. Raises ConfigError where the folder is no run."""
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run}: holds no {CONFIG}; give the folder of a run")
    return load_config(run / CONFIG)
