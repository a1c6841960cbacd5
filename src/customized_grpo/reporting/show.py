"""What ends a run, and what is seen of it before: pictures, the table of scores, warnings, the report."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.text import Text

from customized_grpo.config import Config
from customized_grpo.evaluation import Evaluation, evaluation_grid, guards_of
from customized_grpo.figures.curves import training_curves
from customized_grpo.figures.plane import identity_prompt_plane
from customized_grpo.protocols import PairDataset
from customized_grpo.reporting import REPORT, Finding, collect, find_warnings, notes_of, write_report
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.folder import LORA, open_run
from customized_grpo.utils.records import read_records
from customized_grpo.utils.terminal import score_table


def show(
    config: Config,
    run: Path,
    held_out: PairDataset,
    base: Evaluation,
    tuned: Evaluation,
    console: Console,
) -> None:
    """The pictures and the table that end a run."""
    evaluation_grid(run / "before-after.png", held_out, config.evaluation.images, {"base": base, "tuned": tuned})
    guards = guards_of(config)
    if (run / "metrics.jsonl").exists():
        start = {"iteration": 0, **{f"evaluation/{name}/mean": mean for name, mean in base.means.items()}}
        training_curves(run / "curves.png", [start, *read_records(run / "metrics.jsonl")], guards=guards)
    names = {role: [reward_name(r) for r in config.rewards if r.role == role] for role in ("identity", "prompt")}
    first = {role: given[0] for role, given in names.items()}
    points = {name: (one.mean(first["identity"]), one.mean(first["prompt"]))
              for name, one in (("base", base), ("tuned", tuned))}  # fmt: skip
    title = f"{len(held_out)} pairs of the evaluation"
    identity_prompt_plane(run / "plane.png", points, title=title, labels=(first["identity"], first["prompt"]))
    findings = findings_of(config, run)
    rows = ((name, base.mean(name), tuned.mean(name)) for name in base.scores)
    console.print(score_table(rows, guards=guards, notes=notes_of(config, findings)))
    for finding in findings:
        console.print(Text(warning_of(finding), style="yellow"), soft_wrap=True)
    write_report(open_run(run), run)
    names_shown = (REPORT, "before-after.png", "curves.png", "plane.png", LORA)
    console.print("look at " + ", ".join(os.path.relpath(run / name) for name in names_shown if (run / name).exists()))


def findings_of(config: Config, run: Path) -> list[Finding]:
    """What in the run's curves should worry its reader, as far as it has come."""
    return find_warnings(config, collect(run, config).records)


def warning_of(finding: Finding) -> str:
    return f"warning: {finding.told} {finding.remedy}"


def sample_grid(run: Path, iteration: int) -> Path:
    """The picture of the held-out pairs as they were drawn after that many iterations."""
    return run / "samples" / f"iteration-{iteration:06d}.png"
