"""A run from its configuration: opens the parts, trains them, leaves everything in one folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.report.callbacks import ReportCallback
from customized_grpo.runs.parts import monitor_terms, reward_terms
from customized_grpo.trainer.callbacks import EMACallback, ProgressCallback, TrainerCallback
from customized_grpo.trainer.locking import check_unclaimed
from customized_grpo.trainer.processes import Processes, lost_processes_told, start_processes
from customized_grpo.trainer.trackers import TrackerCallback
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer


@lost_processes_told()
def train_run(config: Config, run: Path, console: Console, *, resume: bool = False) -> None:
    """Train, or continue training, the run in its folder; then generate, score and show what it has learned.

    The folder is made once all parts are open: bad input leaves nothing behind. Raises Stopped where a SIGTERM or
    Ctrl-C ends the training, which is saved.
    """
    callbacks = callbacks_of(config, console)
    dataset, held_out = open_dataset(config.data), open_dataset(config.evaluation.data)
    accelerator = start_processes(config)
    Processes(accelerator).check(config)
    if resume and accelerator.is_main_process:
        check_unclaimed(run)  # before a large model is loaded
    policy = build_policy(config.policy)
    trainer = CustomizedGRPOTrainer(
        policy,
        reward_terms(config, policy.device),
        dataset,
        held_out,
        config,
        run,
        monitors=monitor_terms(config, policy.device),
        callbacks=callbacks,
        accelerator=accelerator,
    )
    trainer.train(resume_from_checkpoint=resume)
    accelerator.end_training()  # which ends the processes' group, too


def callbacks_of(config: Config, console: Console) -> list[TrainerCallback]:
    """Return the callbacks of a run on the command line."""
    average = [EMACallback(config.train.ema)] if config.train.ema > 0 else []
    return [*average, ProgressCallback(console), TrackerCallback(config.train.trackers), ReportCallback(console)]
