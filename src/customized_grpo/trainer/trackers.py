"""Experiment trackers: TensorBoard, Weights & Biases and Trackio, by accelerate.

They get metrics, images, and the configuration without paths, addresses and secrets. Their own environment variables
set the account, the project and the offline mode.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from customized_grpo.config import ConfigError
from customized_grpo.config.reading import dump_yaml, flat
from customized_grpo.config.redaction import redact
from customized_grpo.trainer.callbacks import TrainerCallback

if TYPE_CHECKING:
    from customized_grpo.trainer.base import BaseTrainer

PROJECT = "customized-grpo"


class TrackerCallback(TrainerCallback):
    """Log metrics, the configuration and sample images to experiment trackers.

    Args:
        names: Trackers, of tensorboard, wandb and trackio; an empty list logs nowhere.

    Raises:
        ConfigError: The package of a tracker is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"train.trackers: {name} is not installed; pip install {name}, or take it off the list"
                )
        self._names = list(dict.fromkeys(names))
        self._trackers: list[GeneralTracker] = []

    def on_train_begin(self, trainer: BaseTrainer) -> None:
        """Open the trackers, and log the configuration without secrets."""
        if not trainer.is_main:
            return
        config = redact(trainer.config.model_dump(mode="json"))
        for name in self._names:
            tracker = _tracker(name, trainer.output_dir)
            self._trackers.append(tracker)
            tracker.start()
            if name == "tensorboard":
                # As text: its table of hyperparameters would be a second run beside this one, and takes no lists.
                tracker.tracker.add_text("config", f"```yaml\n{dump_yaml(config)}```")
            else:
                numbers_and_texts = (str, bool, int, float, type(None))
                settings = ((key, value, isinstance(value, numbers_and_texts)) for key, value in flat(config).items())
                tracker.store_init_configuration({key: value if fits else str(value) for key, value, fits in settings})

    def on_step_end(self, trainer: BaseTrainer, metrics: Mapping[str, float]) -> None:
        """Log the iteration's metrics."""
        for tracker in self._trackers:
            tracker.log({key: value for key, value in metrics.items() if key != "iteration"}, step=trainer.iteration)

    def log_image(self, name: str, path: Path, iteration: int) -> None:
        """Log an image file to the trackers that take images."""
        if not self._trackers:
            return
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        for tracker in self._trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=iteration, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [pixels]}, step=iteration)

    def on_exit(self, trainer: BaseTrainer) -> None:
        """Close the trackers."""
        while self._trackers:
            self._trackers.pop().finish()


def _tracker(name: str, run: Path) -> GeneralTracker:
    options: dict[str, Any]
    if name == "wandb":
        # Without the program's code and output, and the machine's name.
        options = {"settings": {"save_code": False, "disable_git": True, "console": "off", "x_disable_meta": True}}
        return WandBTracker(PROJECT, name=run.resolve().name, dir=str(run), **options)
    if name == "trackio":
        return TrackioTracker(PROJECT, name=run.resolve().name, resume="allow")
    return TensorBoardTracker("tensorboard", run)
