"""A run's held-out pairs, drawn and scored: the base model's once, the tuned one's as often as it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import Evaluation, evaluate, read_evaluation
from customized_grpo.policies import build_policy
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.records import writing
from customized_grpo.report.show import show
from customized_grpo.runs.parts import Judges, build_judges
from customized_grpo.trainer.folder import CONFIG, LORA, open_run
from customized_grpo.trainer.locking import claim
from customized_grpo.trainer.processes import ALONE, Processes


def evaluate_run(run: Path, console: Console, overrides: Sequence[str] = ()) -> None:
    """Draw and score the held-out pairs with the run's LoRA and without, and show both."""
    open_run(run)
    config = load_config(run / CONFIG, overrides)
    if not (run / LORA).exists():
        raise ConfigError(f"{run}: holds no {LORA} yet; finish it by cgrpo train --resume {run}")
    held_out = open_dataset(config.evaluation.data)
    with claim(run), writing(run):
        policy = build_policy(config.policy)
        judges = build_judges(config, policy.device)
        base = evaluation_of(config, run, "base", policy, held_out, judges, console, again=bool(overrides))
        policy.load(run / LORA)
        tuned = evaluation_of(config, run, "tuned", policy, held_out, judges, console, again=True)
        show(config, run, held_out, base, tuned, console)


def evaluation_of(
    config: Config,
    run: Path,
    name: str,
    policy: Policy,
    held_out: PairDataset,
    judges: Judges,
    console: Console,
    processes: Processes = ALONE,
    *,
    again: bool = False,
) -> Evaluation:
    """The run's evaluation of that name: "base" is that of the untuned model. Drawn once, or `again`."""
    folder = run / "evaluation" / name
    kept = None if again else read_evaluation(folder, config.evaluation)
    if processes.least(int(kept is not None)) and kept is not None:
        return kept
    if processes.is_main:
        console.print(f"drawing {len(held_out) * config.evaluation.images} pictures of the evaluation ({name})")
    with policy.reference() if name == "base" else nullcontext():
        return draw_evaluation(config, folder, policy, held_out, judges, processes)


def draw_evaluation(
    config: Config, folder: Path, policy: Policy, held_out: PairDataset, judges: Judges, processes: Processes
) -> Evaluation:
    """The held-out pairs as the policy now draws them, scored by all judges, in that folder."""
    size = config.rollout.batch_size
    return evaluate(policy, held_out, judges.all, config.evaluation, folder, batch_size=size, processes=processes)
