"""Callbacks for training events, and the default ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from customized_grpo.trainer.ema import MovingAverage
from customized_grpo.trainer.folder import METRICS
from customized_grpo.utils.records import append_record, read_records, truncate_records
from customized_grpo.utils.terminal import TrainingDisplay, WorkDisplay, plain_console

_LOG = logging.getLogger(__name__)

if TYPE_CHECKING:
    from customized_grpo.trainer.base import BaseTrainer
    from customized_grpo.trainer.evaluation import Evaluation
    from customized_grpo.trainer.groups import Groups


class TrainerCallback:
    """Base class of callbacks: every event does nothing unless it is overridden.

    Events are called on every process, in the order of the trainer's callbacks; `trainer.is_main` is true on the main
    process. A callback may set `trainer.should_stop` to end the training after the present iteration.
    """

    def on_init_end(self, trainer: BaseTrainer) -> None:
        """Called at the end of the trainer's construction, before a checkpoint is loaded."""

    def on_run_begin(self, trainer: BaseTrainer) -> None:
        """Called once when the run's folder is open, before a checkpoint is loaded and the base model evaluated."""

    def on_train_begin(self, trainer: BaseTrainer) -> None:
        """Called once before the first iteration, after a checkpoint was loaded and the base model evaluated."""

    def on_step_begin(self, trainer: BaseTrainer) -> None:
        """Called before each iteration; `trainer.iteration` iterations are done."""

    def on_groups(self, trainer: BaseTrainer, groups: Groups) -> None:
        """Called before an evaluation with the iteration's images, scores and advantages; on the main process only."""

    def on_optimizer_step(self, trainer: BaseTrainer) -> None:
        """Called after each optimizer step that was taken."""

    def on_evaluate_begin(self, trainer: BaseTrainer, name: str, images: int) -> None:
        """Called before the base or the final model is evaluated: `name` is "base" or "tuned"."""

    def on_evaluate_progress(self, trainer: BaseTrainer, done: int) -> None:
        """Called during an evaluation with the number of images that are generated and scored."""

    def on_evaluate(self, trainer: BaseTrainer, evaluation: Evaluation) -> None:
        """Called after each evaluation on the held-out pairs; `trainer.iteration` iterations are done."""

    def on_step_end(self, trainer: BaseTrainer, metrics: Mapping[str, float]) -> None:
        """Called after each iteration with its metrics; `trainer.iteration` counts it.

        A stop request during the iteration's evaluation calls it with the metrics before that evaluation.
        """

    def on_save(self, trainer: BaseTrainer, checkpoint: Path) -> None:
        """Called after a checkpoint was written; only on processes that write."""

    def on_loop_end(self, trainer: BaseTrainer) -> None:
        """Called after the last iteration, before the trained weights are saved and evaluated."""

    def on_train_end(self, trainer: BaseTrainer) -> None:
        """Called at the end, when the trained weights are saved and evaluated."""

    def on_exit(self, trainer: BaseTrainer) -> None:
        """Called last of all, also after an error or an interruption: release what was opened."""

    def state(self) -> dict[str, Tensor]:
        """Return tensors to store in checkpoints; on resume they are filled in place."""
        return {}

    def evaluation_weights(self, trainer: BaseTrainer) -> AbstractContextManager[object]:
        """Return a context in which the policy has the weights to evaluate."""
        return nullcontext()


class MetricsCallback(TrainerCallback):
    """Write one record per iteration to metrics.jsonl; a resumed run first removes those after its checkpoint."""

    def on_train_begin(self, trainer: BaseTrainer) -> None:
        """Remove records after the iteration that training continues from."""
        if not trainer.is_main:
            return
        path = trainer.output_dir / METRICS
        truncate_records(path, trainer.iteration)
        numbers = [record["iteration"] for record in read_records(path)] if path.exists() else []
        if numbers != list(range(1, trainer.iteration + 1)):
            _LOG.warning("%s: iterations 1 to %d are not there once each; curves have gaps", path, trainer.iteration)

    def on_step_end(self, trainer: BaseTrainer, metrics: Mapping[str, float]) -> None:
        """Append the iteration's metrics."""
        if trainer.is_main:
            append_record(trainer.output_dir / METRICS, metrics)


class CheckpointCallback(TrainerCallback):
    """Save a checkpoint every few iterations and after the last one. It is called after all other callbacks.

    Args:
        every: Iterations between checkpoints.
    """

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(self, trainer: BaseTrainer, metrics: Mapping[str, float]) -> None:
        """Save a checkpoint if one is due."""
        if trainer.iteration % self._every == 0 or trainer.is_last:
            trainer.save_checkpoint()


class EMACallback(TrainerCallback):
    """Average the trained weights exponentially; evaluations and the final weights are the average.

    Args:
        decay: Share of the old average that each optimizer step retains, 0 to below 1.

    Attributes:
        average: The average; available once a trainer has the callback.
    """

    average: MovingAverage

    def __init__(self, decay: float) -> None:
        self._decay = decay

    def on_init_end(self, trainer: BaseTrainer) -> None:
        """Start the average at the policy's trained weights."""
        self.average = MovingAverage(trainer.policy, self._decay)

    def on_optimizer_step(self, trainer: BaseTrainer) -> None:
        """Add the updated weights to the average."""
        self.average.update()

    def on_loop_end(self, trainer: BaseTrainer) -> None:
        """Replace the trained weights by their average."""
        self.average.apply()

    def state(self) -> dict[str, Tensor]:
        """Return the averages by their names in a checkpoint."""
        return self.average.tensors

    def evaluation_weights(self, trainer: BaseTrainer) -> AbstractContextManager[object]:
        """Return a context in which the policy has the averaged weights."""
        return self.average.applied()


class EarlyStoppingCallback(TrainerCallback):
    """Stop when an evaluated score has not improved for a number of evaluations.

    Args:
        reward: Name of the reward or monitor to follow.
        patience: Evaluations without an improvement after which training stops.
        threshold: Smallest change that counts as an improvement, in the score's own unit.
    """

    def __init__(self, reward: str, patience: int = 3, threshold: float = 0.0) -> None:
        self._reward, self._patience, self._threshold = reward, patience, threshold
        self._progress = torch.tensor([-math.inf, 0.0], dtype=torch.float64)  # best score, evaluations since then

    def on_evaluate(self, trainer: BaseTrainer, evaluation: Evaluation) -> None:
        """Stop the training if the score has not improved for `patience` evaluations."""
        if self._reward not in evaluation.scores:
            known = ", ".join(evaluation.scores)
            raise ValueError(f"EarlyStoppingCallback: there is no reward {self._reward!r}; give one of {known}")
        score = evaluation.mean(self._reward)
        if score > float(self._progress[0]) + self._threshold:
            self._progress[0], self._progress[1] = score, 0
        else:
            self._progress[1] += 1
            self._stop(trainer)

    def on_train_begin(self, trainer: BaseTrainer) -> None:
        """Stop a resumed training that was stopped before."""
        self._stop(trainer)

    def state(self) -> dict[str, Tensor]:
        """Return the best score and the number of evaluations since then."""
        return {f"early_stopping.{self._reward}": self._progress}

    def _stop(self, trainer: BaseTrainer) -> None:
        trainer.should_stop = trainer.should_stop or float(self._progress[1]) >= max(1, self._patience)


class ProgressCallback(TrainerCallback):
    """Show progress, scores and the time left: a live bar on a terminal, a line per iteration in a log file."""

    def __init__(self, console: Console | None = None) -> None:
        self._console, self._open = console or plain_console(), ExitStack()
        self._display: TrainingDisplay | None = None
        self._evaluation: WorkDisplay | None = None

    def on_run_begin(self, trainer: BaseTrainer) -> None:
        """Print the number of pairs and trainable parameters, the device and the run folder."""
        if trainer.is_main:
            weights = sum(weight.numel() for weight in trainer.policy.trainable().values())
            line = f"{len(trainer.train_dataset)} pairs, {weights:,} trainable parameters on {trainer.policy.device}"
            self._console.print(Text(f"{line}; run folder {trainer.output_dir}"), soft_wrap=True)

    def on_evaluate_begin(self, trainer: BaseTrainer, name: str, images: int) -> None:
        """Print the number of images to generate."""
        if trainer.is_main:
            self._console.print(f"generating {images} images of the evaluation ({name})")
            self._evaluation = self._open.enter_context(WorkDisplay("evaluation", images, self._console))

    def on_evaluate_progress(self, trainer: BaseTrainer, done: int) -> None:
        """Show the images done and the time left, of an evaluation before or after the training."""
        if self._evaluation is not None and self._evaluation.update(done):
            self.on_exit(trainer)

    def on_train_begin(self, trainer: BaseTrainer) -> None:
        """Open the progress display."""
        if trainer.is_main:
            display = TrainingDisplay("", trainer.iterations, self._console, done=trainer.iteration)
            self._display = self._open.enter_context(display)

    def on_step_end(self, trainer: BaseTrainer, metrics: Mapping[str, float]) -> None:
        """Show the iteration's progress and scores."""
        if self._display is not None:
            self._display.add(metrics)

    def on_loop_end(self, trainer: BaseTrainer) -> None:
        """Close the progress display."""
        self.on_exit(trainer)

    def on_exit(self, trainer: BaseTrainer) -> None:
        """Close the progress display if it is still open."""
        self._open.close()
        self._display = self._evaluation = None
