"""A run's LoRA as a folder for the hub: the weights, a model card, the image of before and after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file

from customized_grpo.config import Config, ConfigError
from customized_grpo.data.image_files import check
from customized_grpo.evaluation import read_evaluation
from customized_grpo.reporting.card import model_card
from customized_grpo.reporting.formats import Format, convert
from customized_grpo.reporting.snapshots import read_samples
from customized_grpo.trainer.checkpoint import checkpointed_iterations
from customized_grpo.trainer.folder import LORA, LORA_FILE, check_output, open_run
from customized_grpo.utils.records import move_folder, temporary_folder, writing

IMAGE_FILE = "before-after.png"
_PROMPTS = 3


def export_run(run: Path, out: Path, form: Format = "diffusers") -> None:
    """Write a run's LoRA in diffusers' format, README.md and, if the run has it, before-after.png to a folder.

    The card contains the run's configuration without local paths, addresses and secrets. Its image and prompts are
    held-out data of the run.

    Args:
        run: Folder of a finished run.
        out: Folder to write; it must be empty or absent.
        form: With another format than diffusers', that file is written too: FORMAT.safetensors, see `formats`.

    Raises:
        ConfigError: The run is not finished or has no LoRA, `out` is not empty or belongs to a run, or the format has
            no names for it.
    """
    config = finished_run(run)
    weights, preview = run / LORA / LORA_FILE, run / IMAGE_FILE
    if not weights.is_file() and not (run / LORA / "transformer").is_dir():
        raise ConfigError(f"{weights}: no such file; put it back, or train further: cgrpo train --resume {run}")
    if not weights.is_file():
        raise ConfigError(
            f"{run}: there is no LoRA, because all weights were trained (policy.lora is null); use cgrpo merge"
        )
    base, tuned = (read_evaluation(run / "evaluation" / name, config.evaluation) for name in ("base", "tuned"))
    samples = list(read_samples(run).values())
    prompts = dict.fromkeys(pair.prompt for pair in samples[-1].pairs) if samples else ()
    with new_folder(out) as folder:
        shutil.copyfile(weights, folder / weights.name)
        if form != "diffusers":
            from customized_grpo.policies.tuning import lora_metadata  # takes seconds

            stored = load_file(weights)
            rank = max(len(down) for name, down in stored.items() if name.endswith(".lora_A.weight"))
            alpha = float(lora_metadata(weights).get("transformer.lora_alpha", rank))
            save_file(convert(stored, alpha, config.policy.kind, form), folder / f"{form}.safetensors")
        if preview.is_file():
            check(preview)
            with Image.open(preview) as image:
                image.convert("RGB").save(folder / IMAGE_FILE)  # pixels only, without metadata
        evaluations = (base, tuned) if base is not None and tuned is not None else None
        card = model_card(config, evaluations, list(prompts)[:_PROMPTS], IMAGE_FILE if preview.is_file() else None)
        card.save(folder / "README.md")


def finished_run(run: Path) -> Config:
    """Return the configuration of a finished run, which may have no checkpoints any more.

    Raises:
        ConfigError: The folder is no run, or the run is not finished.
    """
    config = open_run(run)
    done = checkpointed_iterations(run)
    if not (run / LORA).is_dir() or 0 < done < config.train.iterations:
        raise ConfigError(
            f"{run}: not finished, {done} of {config.train.iterations} iterations are done; "
            f"continue it with cgrpo train --resume {run}"
        )
    return config


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` when the block succeeds. Raise ConfigError if `out` is not empty."""
    check_output(out, folder=True)
    temporary = temporary_folder(out.resolve())
    try:
        with writing(out):
            yield temporary
            move_folder(temporary, out.resolve())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
