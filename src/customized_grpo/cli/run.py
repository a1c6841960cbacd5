"""A run from its configuration: opens the parts, trains them, leaves everything in one folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.planning import check_models
from customized_grpo.reporting.callbacks import ReportCallback
from customized_grpo.trainer.callbacks import ProgressCallback
from customized_grpo.trainer.locking import check_unclaimed
from customized_grpo.trainer.processes import reports_lost_processes, start_processes
from customized_grpo.trainer.trackers import TrackerCallback
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer


@reports_lost_processes()
def train_run(config: Config, run: Path, console: Console, *, resume: bool = False) -> None:
    """Train, or continue training, the run in its folder; then generate, score and show what it has learned.

    The folder is made once all parts are open: bad input leaves nothing behind. Raises Stopped where a SIGTERM or
    Ctrl-C ends the training, which is saved.
    """
    callbacks = [ProgressCallback(console), TrackerCallback(config.train.trackers), ReportCallback(console)]
    dataset, held_out = open_dataset(config.data), open_dataset(config.evaluation.data)
    check_models(config)
    accelerator = start_processes(config)
    if resume and accelerator.is_main_process:
        check_unclaimed(run)  # before a large model is loaded
    trainer = CustomizedGRPOTrainer(
        train_dataset=dataset,
        eval_dataset=held_out,
        args=config,
        output_dir=run,
        callbacks=callbacks,
        accelerator=accelerator,
    )
    trainer.train(resume_from_checkpoint=resume)
    accelerator.end_training()  # which ends the processes' group, too
