"""A run's LoRA as a folder for the hub: the weights, a model card, the picture of before and after."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from customized_grpo.config import ConfigError
from customized_grpo.evaluation import read_evaluation
from customized_grpo.reporting.card import Scores, model_card
from customized_grpo.reporting.export import finished_run, new_folder_at
from customized_grpo.reporting.snapshots import read_samples
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.folder import LORA, LORA_FILE

PICTURE = "before-after.png"
_PROMPTS = 3


def export_run(run: Path, out: Path) -> None:
    """Write the LoRA in diffusers' form, README.md and, where the run has it, before-after.png to the folder `out`.

    The card holds the run's configuration without paths, addresses and secrets. The picture and the prompts of the
    card are the run's own held-out data.

    Raises:
        ConfigError: the run is not finished, has no LoRA, or `out` holds something.
    """
    config = finished_run(run)
    weights = run / LORA / LORA_FILE
    if not weights.is_file():
        raise ConfigError(f"{run}: all weights were tuned (policy.lora is null), there is no LoRA; use cgrpo merge")
    with new_folder_at(out) as folder:
        shutil.copyfile(weights, folder / weights.name)
        picture = run / PICTURE
        if picture.is_file():
            with Image.open(picture) as image:
                image.convert("RGB").save(folder / PICTURE)  # pixels alone: no metadata
        card = model_card(config, _scores(run), _prompts(run), PICTURE if picture.is_file() else None)
        card.save(folder / "README.md")


def _scores(run: Path) -> Scores | None:
    """The run's scores before and after; None where it was not evaluated by its own settings."""
    config = finished_run(run)
    base, tuned = (read_evaluation(run / "evaluation" / name, config.evaluation) for name in ("base", "tuned"))
    if base is None or tuned is None:
        return None
    watched = {reward_name(monitor) for monitor in config.evaluation.monitors}
    rows = [(name, name in watched, base.mean(name), tuned.mean(name)) for name in base.scores if name in tuned.scores]
    return Scores(rows, len(tuned.pictures))


def _prompts(run: Path) -> list[str]:
    """A few of the prompts that the run's held-out pictures were drawn by."""
    kept = list(read_samples(run).values())
    return list(dict.fromkeys(pair.prompt for pair in kept[-1].pairs))[:_PROMPTS] if kept else []
