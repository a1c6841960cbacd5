"""The callback that stores what a run's report shows, and the end of a run on the terminal."""

import os
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from customized_grpo.config import BALANCES, Config
from customized_grpo.evaluation import Evaluation, axes_of, evaluation_grid, guards_of
from customized_grpo.figures.curves import training_curves
from customized_grpo.figures.plane import identity_prompt_plane
from customized_grpo.figures.schedule import schedule
from customized_grpo.protocols import PairDataset
from customized_grpo.reporting.collect import collect
from customized_grpo.reporting.page import REPORT, write_report
from customized_grpo.reporting.snapshots import keep_groups, keep_samples
from customized_grpo.reporting.warnings import Finding, find_warnings, notes_of
from customized_grpo.trainer.base import BaseTrainer
from customized_grpo.trainer.callbacks import TrainerCallback
from customized_grpo.trainer.credit import weights_of
from customized_grpo.trainer.folder import LORA, METRICS, open_run
from customized_grpo.trainer.groups import Groups
from customized_grpo.trainer.rollout import noise_levels
from customized_grpo.trainer.trackers import TrackerCallback
from customized_grpo.utils.terminal import plain_console, score_table


class ReportCallback(TrainerCallback):
    """Store sample images and groups every few iterations, print warnings, and write the report at the end.

    Args:
        console: Console for warnings and the final table of scores. Default: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or plain_console()
        self._warned: set[tuple[str, str]] = set()

    def on_train_begin(self, trainer: BaseTrainer) -> None:
        """Plot the weights of the denoising steps, and store the base model's sample images."""
        if not trainer.is_main:
            return
        config, run = trainer.config, trainer.output_dir
        if config.method.weighting not in BALANCES:
            sigmas = noise_levels(trainer.policy, config.rollout.steps, config.rollout.shift).cpu()
            shuffled = config.method.weighting == "tdw-shuffled"
            title = "read at shuffled positions, not at the step" if shuffled else None
            weights = weights_of(config.method, config.rollout.steps)
            schedule(run / "weights.png", *weights, sigmas=sigmas[:-1], title=title)
        if trainer.base_evaluation is not None:
            self._store(trainer, 0, trainer.base_evaluation)

    def on_groups(self, trainer: BaseTrainer, groups: Groups) -> None:
        """Store the best and the worst group of the iteration."""
        keep_groups(trainer.output_dir, trainer.iteration, groups)

    def on_evaluate(self, trainer: BaseTrainer, evaluation: Evaluation) -> None:
        """Store the sample images, plot them beside those of the base model, and log the plot."""
        if not trainer.is_main or trainer.eval_dataset is None:
            return
        self._store(trainer, trainer.iteration, evaluation)
        base = {} if trainer.base_evaluation is None else {"base": trainer.base_evaluation}
        columns = {**base, f"iteration {trainer.iteration}": evaluation}
        grid = trainer.output_dir / "samples" / f"iteration-{trainer.iteration:06d}.png"
        evaluation_grid(grid, trainer.eval_dataset, trainer.config.evaluation.images, columns)
        for callback in trainer.callbacks:
            if isinstance(callback, TrackerCallback):
                callback.log_image("samples", grid, trainer.iteration)

    def on_step_end(self, trainer: BaseTrainer, metrics: Mapping[str, float]) -> None:
        """Print warnings that are new since the last evaluation."""
        if trainer.is_main and any(key.startswith("evaluation/") for key in metrics):
            for finding in find_warnings(trainer.config, collect(trainer.output_dir, trainer.config).records):
                if (finding.kind, finding.about) not in self._warned:
                    self._console.print(Text(warning_line(finding)), soft_wrap=True)
                self._warned.add((finding.kind, finding.about))

    def on_train_end(self, trainer: BaseTrainer) -> None:
        """Write the report, and print the final table of scores."""
        base, tuned, held_out = trainer.base_evaluation, trainer.evaluation, trainer.eval_dataset
        if trainer.is_main and base is not None and tuned is not None and held_out is not None:
            show(trainer.config, trainer.output_dir, held_out, base, tuned, self._console)

    def _store(self, trainer: BaseTrainer, iteration: int, evaluation: Evaluation) -> None:
        assert trainer.eval_dataset is not None
        images = trainer.config.evaluation.images
        keep_samples(trainer.output_dir, iteration, trainer.eval_dataset, images, evaluation)


def show(
    config: Config,
    run: Path,
    held_out: PairDataset,
    base: Evaluation,
    tuned: Evaluation,
    console: Console,
) -> None:
    """Write the figures and the report of a run, and print its scores and warnings."""
    evaluation_grid(run / "before-after.png", held_out, config.evaluation.images, {"base": base, "tuned": tuned})
    guards, records = guards_of(config), collect(run, config).records
    if (run / METRICS).exists():
        start = {"iteration": 0, **{f"evaluation/{name}/mean": mean for name, mean in base.means.items()}}
        training_curves(run / "curves.png", [start, *(r for r in records if r["iteration"] > 0)], guards=guards)
    axes = axes_of(config)["rewards"]
    points = {name: (one.mean(axes[0]), one.mean(axes[1])) for name, one in (("base", base), ("tuned", tuned))}
    identity_prompt_plane(run / "plane.png", points, title=f"{len(held_out)} pairs of the evaluation", labels=axes)
    findings = find_warnings(config, records)
    rows = ((name, base.mean(name), tuned.mean(name)) for name in base.scores)
    console.print(score_table(rows, guards=guards, notes=notes_of(config, findings)))
    for finding in findings:
        console.print(Text(warning_line(finding), style="yellow"), soft_wrap=True)
    write_report(open_run(run), run)
    shown = (REPORT, "before-after.png", "curves.png", "plane.png", LORA)
    paths = ", ".join(os.path.relpath(run / name) for name in shown if (run / name).exists())
    console.print(Text(f"look at {paths}"), soft_wrap=True)


def warning_line(finding: Finding) -> str:
    """Return a finding as one line."""
    return f"warning: {finding.message} {finding.remedy}"
