"""The held-out evaluation of a run, and views of it: the scores that span a plane, the guards, a grid of pairs."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from PIL import Image
from rich.console import Console

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.figures.grids import image_grid
from customized_grpo.policies import build_policy
from customized_grpo.protocols import PairDataset
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.evaluation import Evaluation, evaluate, read_evaluation
from customized_grpo.trainer.folder import CONFIG, LORA, open_run
from customized_grpo.trainer.locking import claim
from customized_grpo.trainer.parts import build_scorers
from customized_grpo.utils.machine import use_threads
from customized_grpo.utils.records import writing
from customized_grpo.utils.terminal import WorkDisplay

_SHOWN = 6  # pairs of a grid


def axes_of(config: Config) -> dict[str, tuple[str, str]]:
    """Return the planes by name: (identity, prompt) of the rewards, and of the independent monitors."""
    planes = {}
    for name, scorers in (("rewards", config.rewards), ("independent", config.evaluation.monitors)):
        first = {scorer.role: reward_name(scorer) for scorer in reversed(scorers)}
        if "identity" in first and "prompt" in first:
            planes[name] = (first["identity"], first["prompt"])
    return planes


def guards_of(config: Config) -> list[str]:
    """Return the names of the scores that are not trained on and for which higher is worse."""
    return [reward_name(scorer) for scorer in [*config.rewards, *config.evaluation.monitors] if scorer.role == "guard"]


def shown_pairs(count: int) -> list[int]:
    """Return the indices of at most six of `count` pairs, evenly spread."""
    return [i * count // _SHOWN for i in range(_SHOWN)] if count > _SHOWN else list(range(count))


def evaluation_grid(path: Path, pairs: PairDataset, images: int, columns: Mapping[str, Evaluation]) -> None:
    """Write a PNG of a few pairs: the reference, and the first of the `images` per pair of each evaluation."""
    shown = shown_pairs(len(pairs))
    rows = [[pairs[i].references[0], *(Image.open(one.images[i * images]) for one in columns.values())] for i in shown]
    image_grid(path, rows, [pairs[i].prompt for i in shown], ("reference", *columns))


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
