"""A run's weights for others: its LoRA as a folder for the hub, or the whole pipeline with its changes merged in."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
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
from customized_grpo.trainer.parts import policy_with_adapter
from customized_grpo.utils.records import move_folder, temporary_folder, write_json, writing

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
            from customized_grpo.policies.adapters import lora_metadata  # takes seconds

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
    """Return the configuration of a finished run, which may have no checkpoints any more. ConfigError for another."""
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


#: All parts on the CPU and as published, whatever the run needed to fit its memory.
_WHOLE = {
    "device": "cpu", "quantise": None, "quantise_text_encoders": None, "conditions": None, "offload": False,
    "compile": False, "attention": "auto",
}  # fmt: skip
_PLACE = "_name_or_path"  #: key under which diffusers and transformers store the folder that a part was loaded from


def merge_run(run: Path, out: Path, dtype: str | None = None) -> None:
    """Write a run's pipeline with its LoRA or its tuned weights merged in, as safetensors only, to a new folder.

    Weights are merged on the CPU, which needs memory for the whole pipeline. A LoRA that was trained on a quantised
    base is merged into the published weights. Raises ConfigError if the run is not finished, the policy is no pipeline
    of diffusers or `out` is not empty, and ModelError if weights cannot be loaded.
    """
    config = finished_run(run)
    check_output(out, folder=True)
    from customized_grpo.policies.pipelines import PipelinePolicy  # takes seconds, so errors come first

    whole = config.policy.model_copy(update=_WHOLE)
    policy = policy_with_adapter(config.model_copy(update={"policy": whole}), run)
    if not isinstance(policy, PipelinePolicy):
        raise ConfigError(f"policy.kind: {config.policy.kind} is no pipeline of diffusers; only those can be merged")
    with new_folder(out) as folder:
        policy.save_merged(folder, getattr(torch, dtype or config.policy.dtype))
        for path in [folder / "model_index.json", *folder.glob("*/*.json")]:
            values = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(values, dict) and values.pop(_PLACE, None) is not None:  # a path of this machine
                write_json(path, values)
