"""Numbers that are not finite: scores, ends of the noise schedule, low precision, gradients, high learning rates.

Each experiment returns what was found wrong.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from customized_grpo.trainer.checkpoint import newest_checkpoint
from customized_grpo.utils.hub import EMBEDDED_FOLDER

from .bench import EVERY, Bench, Ended, new_run, records_of
from .campaigns import digests
from .kills import Reference

REWARD = """
import torch

def reward(images, pairs):
    scores = 100 * images.mean((1, 2, 3))
    {fault}
    return scores
"""


def scores(bench: Bench, fault: str, limit: float) -> list[str]:
    """A reward with a fault, which the run survives or stops for in one line; equal scores are no fault."""
    folder = bench.place("score")
    (folder / "reward.py").write_text(REWARD.format(fault=fault))
    reward = f"{folder / 'reward.py'}:reward"
    settings = new_run(rewards__0__kind=reward, rewards__1__kind=reward, train__max_missing=limit)
    ended = bench.run(settings, folder)
    if ended.code == 0:
        return _unsound(ended, folder)
    return ended.lacks_line("of 4 images have no score, more than train.max_missing", "--resume run") and (
        ended.lacks_line("gradient that is not finite") and ended.lacks_line("are not finite", "rewards.N.weight")
    )


def ends_of_the_noise(bench: Bench, sampler: str, shift: float) -> list[str]:
    """Noise levels crowded at one end, where all numbers are finite; refused where two are the same number."""
    folder = bench.place("ends")
    ended = bench.run(new_run(rollout__sampler=sampler, rollout__shift=shift), folder)
    if shift == 1e9:
        return ended.lacks_line("rollout.shift", "noise levels the same")
    return [f"{sampler}, shift {shift:g}: {wrong}" for wrong in _unsound(ended, folder)]


def overflow(bench: Bench, dtype: str, scale: float) -> list[str]:
    """A transformer whose numbers overflow: the run stops, and names the setting."""
    folder = bench.place("overflow")
    shutil.copytree(EMBEDDED_FOLDER / "pipeline", folder / "pipeline")
    (file,) = (folder / "pipeline" / "transformer").glob("*.safetensors")
    weights = load_file(file)
    weights["proj_out.weight"] = weights["proj_out.weight"] * scale
    save_file(weights, file, {"format": "pt"})
    # Another model's path is not the embedded recipe, unless that is named.
    arguments = [*new_run(policy__path="./pipeline", policy__dtype=dtype), "--config", "embedded"]
    return bench.run(arguments, folder).lacks_line("not finite are 1 of them: set policy.dtype to float32")


def bad_gradients(bench: Bench, whole: Reference, count: int, limit: int) -> list[str]:
    """`count` updates in a row with a gradient of NaN: they are skipped and counted, more than `limit` end the run."""
    folder = bench.place("gradients")
    fault = {"site": "a gradient of NaN", "number": 2 * EVERY + 1, "count": count}
    ended = bench.run(new_run(train__max_skipped=limit), folder, fault=fault)
    if count <= limit:
        skipped = sum(2 * record["share/skipped"] for record in records_of(folder / "run"))
        return _unsound(ended, folder, ("loss", "gradient_norm")) + [f"{skipped} are counted"] * (skipped != count)
    reason = f"{limit + 1} updates in a row had a gradient that is not finite, more than train.max_skipped={limit}"
    return ended.lacks_line(reason, "--resume run") + bench.ends_differently(folder, whole.result)


def exploding(bench: Bench, whole: Reference, rate: float) -> list[str]:
    """A learning rate too high from the middle of a run on: it stops, and resumes from before."""
    folder = bench.place("exploding")
    shutil.copytree(whole.half / "run", folder / "run")
    config, checkpoints = folder / "run" / "config.yaml", folder / "run" / "checkpoints"
    kept, before = config.read_text(), digests(checkpoints / f"{EVERY:06d}")
    config.write_text(re.sub(r"learning_rate: [\d.e-]+", f"learning_rate: {rate}", kept))
    assert config.read_text() != kept
    resumed = bench.run(["train", "--resume", "run", "--allow-changes"], folder)
    wrong = resumed.lacks_line(f"lower train.learning_rate in {Path('run') / 'config.yaml'}")
    newest = newest_checkpoint(checkpoints)
    if newest is None or newest.name != f"{EVERY:06d}" or digests(newest) != before:
        wrong.append(f"rate {rate:g}: the last checkpoint is {newest}, or not what it was")
    config.write_text(kept)
    return wrong + bench.ends_differently(folder, whole.result)


def _unsound(ended: Ended, folder: Path, ignored: tuple[str, ...] = ()) -> list[str]:
    """Return what is wrong unless the run came to its end with finite numbers, except for some metrics."""
    if ended.code != 0:
        return [f"ended with {ended.code}: {ended.output[-800:]}"]
    newest = newest_checkpoint(folder / "run" / "checkpoints")
    assert newest is not None
    numbers = {name: tensor for file in newest.rglob("*.safetensors") for name, tensor in load_file(file).items()}
    for record in records_of(folder / "run"):
        values = {name: float("nan") if value is None else value for name, value in record.items()}
        numbers |= {name: torch.tensor(value) for name, value in values.items() if name not in ignored}
    return [f"{name} is not finite" for name, tensor in numbers.items() if not bool(tensor.isfinite().all())]
