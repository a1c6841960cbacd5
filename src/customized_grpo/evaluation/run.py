"""The held-out evaluation of a finished run: its base model and its LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.protocols import PairDataset
from customized_grpo.trainer.evaluation import Evaluation, evaluate, read_evaluation
from customized_grpo.trainer.folder import CONFIG, LORA, open_run
from customized_grpo.trainer.locking import claim
from customized_grpo.trainer.parts import build_scorers
from customized_grpo.utils.machine import use_threads
from customized_grpo.utils.records import writing
from customized_grpo.utils.terminal import WorkDisplay


def evaluate_run(
    run: Path, console: Console, overrides: Sequence[str] = ()
) -> tuple[Config, PairDataset, Evaluation, Evaluation]:
    """Generate and score images of the held-out pairs; return settings, pairs and scores of base and LoRA.

    The base model's scores are read where they exist and no setting is overridden. ConfigError if there is no LoRA yet.
    """
    open_run(run)
    config = load_config(run / CONFIG, overrides)
    if not (run / LORA).exists():
        raise ConfigError(f"{run}: has no {LORA} yet; finish it with cgrpo train --resume {run}")
    held_out = open_dataset(config.evaluation.data)
    use_threads(config.train.threads)
    with claim(run), writing(run):
        policy = build_policy(config.policy)
        rewards = build_scorers(config, policy.device)

        def scored(name: str) -> Evaluation:
            count = len(held_out) * config.evaluation.images
            console.print(f"generating {count} evaluation images ({name})")
            untuned = policy.reference() if name == "base" else nullcontext()
            with WorkDisplay("evaluation", count, console) as display, untuned:
                return evaluate(
                    policy,
                    held_out,
                    rewards,
                    config.evaluation,
                    run / "evaluation" / name,
                    batch_size=config.rollout.batch_size,
                    seed=config.seed,
                    progress=display.update,
                )

        base = None if overrides else read_evaluation(run / "evaluation" / "base", config.evaluation, held_out)
        base = base or scored("base")
        policy.load(run / LORA)
        return config, held_out, base, scored("tuned")
