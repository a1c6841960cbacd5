"""A run from its configuration: opens the parts, trains them, leaves everything in one folder."""

from pathlib import Path

from rich.console import Console

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.planning import check_models
from customized_grpo.planning.report import check_memory
from customized_grpo.reporting.callbacks import ReportCallback
from customized_grpo.trainer.callbacks import ProgressCallback
from customized_grpo.trainer.folder import check_run_folder
from customized_grpo.trainer.locking import check_unclaimed
from customized_grpo.trainer.processes import reports_lost_processes, start_processes
from customized_grpo.trainer.resuming import check_resumable, origin
from customized_grpo.trainer.trackers import TrackerCallback
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.machine import busy_hint


@reports_lost_processes()
def train_run(
    config: Config, run: Path | None, console: Console, *, resume: bool = False, allow_changes: bool = False
) -> None:
    """Train, or continue, a run in its folder or a new one in `runs`; then evaluate and show what it has learned.

    The folder is made once all parts are open: bad input leaves nothing behind. Raises Stopped after a stop request.
    """
    callbacks = [ProgressCallback(console), TrackerCallback(config.train.trackers), ReportCallback(console)]
    dataset, held_out = open_dataset(config.data), open_dataset(config.evaluation.data)
    check_models(config)
    check_memory(config, len(dataset[0].references))
    accelerator = start_processes(config)
    if accelerator.is_main_process and (hint := busy_hint(config.train.threads)):
        console.print(hint, soft_wrap=True)
    if run is not None and resume and accelerator.is_main_process:
        check_run_folder(run)
        check_unclaimed(run)  # before a large model is loaded
        check_resumable(run, config, origin(config, dataset, held_out), allow_changes=allow_changes, early=True)
    trainer = CustomizedGRPOTrainer(
        train_dataset=dataset,
        eval_dataset=held_out,
        args=config,
        output_dir=run,
        callbacks=callbacks,
        accelerator=accelerator,
    )
    trainer.train(resume_from_checkpoint=resume, allow_changes=allow_changes)
    accelerator.end_training()  # which ends the processes' group, too
