"""The end of a run on the terminal: figures, the table of scores, warnings, the report."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.text import Text

from customized_grpo.config import Config
from customized_grpo.evaluation import Evaluation, axes_of, evaluation_grid, guards_of
from customized_grpo.figures.curves import training_curves
from customized_grpo.figures.plane import identity_prompt_plane
from customized_grpo.protocols import PairDataset
from customized_grpo.reporting.collect import collect
from customized_grpo.reporting.page import REPORT, write_report
from customized_grpo.reporting.warnings import Finding, find_warnings, notes_of
from customized_grpo.trainer.folder import LORA, METRICS, open_run
from customized_grpo.utils.terminal import score_table


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
