"""Where a training is followed: TensorBoard, Weights & Biases, Trackio, by accelerate's trackers.

What they are told besides the numbers is the configuration without paths, addresses and secrets. What else they
want to know (account, project, offline mode) they read from their own environment variables.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import dump_yaml
from customized_grpo.config.redaction import flat, redact

PROJECT = "customized-grpo"


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError where the package of a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.trackers: {name} is not installed; pip install {name}, or take it off the list")


def trackers_of(names: Sequence[str], run: Path) -> list[GeneralTracker]:
    """The trackers of those names for a run, for `Accelerator(log_with=...)`; started by `start_trackers`."""
    return [_tracker(name, run) for name in dict.fromkeys(names)]


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Start the accelerator's trackers, and tell them the configuration."""
    accelerator.init_trackers(PROJECT)
    told = redact(config.model_dump(mode="json"))
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        if tracker.name == "tensorboard":
            # As text: its table of hyperparameters would be a second run beside this one, and take no lists.
            tracker.tracker.add_text("config", f"```yaml\n{dump_yaml(told)}```")
        else:
            tracker.store_init_configuration(flat(told))


def log_picture(accelerator: Accelerator, name: str, path: Path, iteration: int) -> None:
    """Show an image file in those trackers that take images. For the main process."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: pixels[None]}, step=iteration, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [pixels]}, step=iteration)


def _tracker(name: str, run: Path) -> GeneralTracker:
    options: dict[str, Any]
    if name == "wandb":
        # Neither the program's text nor its output, nor what the machine is called.
        options = {"settings": {"save_code": False, "disable_git": True, "console": "off", "x_disable_meta": True}}
        return WandBTracker(PROJECT, name=run.resolve().name, dir=str(run), **options)
    if name == "trackio":
        return TrackioTracker(PROJECT, name=run.resolve().name, resume="allow")
    return TensorBoardTracker("tensorboard", run)
