"""Numbers that are none: of judges, of the noise's ends, of low precision, of gradients, of learning rates too high.

Each experiment returns what was found wrong.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from customized_grpo.trainer.checkpoint import newest_checkpoint
from customized_grpo.utils.hub import EMBEDDED_FOLDER

from .bench import EVERY, Bench, Ended, Result, records_of, settings
from .kills import Reference
from .places import digest, one_line

JUDGE = """
import torch

def judge(images, pairs):
    scores = 100 * images.mean((1, 2, 3))
    {fault}
    return scores
"""
HUGE = 3e38  # near the end of float32


def score_of(bench: Bench, value: float, limit: float) -> list[str]:
    """A judge that gives the first of the four pictures of an iteration a score that is no number."""
    folder = bench.place("score")
    judge = _judge(folder, f"scores[:-3] = float('{value}')")
    ended = bench.run(_new(rewards__0__kind=judge, train__max_missing=limit), folder, pictures=False)
    if limit < 0.25:
        wrong = one_line(ended, "1 of 4 images have no score, more than train.max_missing", "--resume run")
        newest = newest_checkpoint(folder / "run" / "checkpoints")
        return wrong + ["no checkpoint"] * (newest is None or newest.name != "000000")
    shares = [record["share/missing"] for record in records_of(folder / "run")]
    return _sound(ended, folder) + [f"share/missing is {shares}"] * (shares != [0.25] * len(shares))


def equal_scores(bench: Bench) -> list[str]:
    """Judges that find all pictures alike: nothing is learnt, and nothing breaks."""
    folder = bench.place("equal")
    judge = _judge(folder, "scores[:] = 50.0")
    ended = bench.run(
        _new(rewards__0__kind=judge, rewards__1__kind=judge, train__kl_weight=0.1), folder, pictures=False
    )
    wrong = _sound(ended, folder)
    for record in records_of(folder / "run"):
        if record["share/no_signal_identity"] != 1 or record["share/no_signal_prompt"] != 1:
            wrong.append("there is a signal in equal scores")
    return wrong


def huge_scores(bench: Bench) -> list[str]:
    """Scores whose squares overflow: the run is sound to its end, or stops and says why."""
    folder = bench.place("huge")
    judge = _judge(folder, f"scores = {HUGE} * torch.linspace(-1, 1, len(scores))")
    ended = bench.run(_new(rewards__0__kind=judge), folder, pictures=False)
    return _sound(ended, folder) if ended.code == 0 else one_line(ended, "gradient that is not finite")


def ends_of_the_noise(bench: Bench, sampler: str, shift: float) -> list[str]:
    """Noise levels crowded at one end: all numbers are finite."""
    folder = bench.place("ends")
    ended = bench.run(_new(rollout__sampler=sampler, rollout__shift=shift), folder, pictures=False)
    return [f"{sampler}, shift {shift:g}: {wrong}" for wrong in _sound(ended, folder)]


def past_the_ends(bench: Bench) -> list[str]:
    """So crowded that two of the levels are one number: refused."""
    folder = bench.place("past")
    return one_line(bench.run(_new(rollout__shift=1e9), folder), "rollout.shift", "noise levels the same")


def overflow(bench: Bench, dtype: str, scale: float) -> list[str]:
    """A transformer whose numbers leave the range of the precision: it stops, and says which key to set."""
    folder = bench.place("overflow")
    shutil.copytree(EMBEDDED_FOLDER / "pipeline", folder / "pipeline")
    (file,) = (folder / "pipeline" / "transformer").glob("*.safetensors")
    weights = load_file(file)
    weights["proj_out.weight"] = weights["proj_out.weight"] * scale
    save_file(weights, file, {"format": "pt"})
    # A model of one's own is not the embedded recipe any more, unless that is named.
    changes = _new(policy__path="./pipeline", policy__dtype=dtype)
    ended = bench.run([*changes, "--config", "embedded"], folder)
    return one_line(ended, "not finite are 1 of them: set policy.dtype to float32")  # of the base's evaluation


def bad_gradients(bench: Bench, whole: Reference, count: int, limit: int) -> list[str]:
    """`count` updates in a row whose gradient is NaN: they are skipped and counted, more than `limit` end the run."""
    folder = bench.place("gradients")
    fault = {"site": "a gradient of NaN", "number": 2 * EVERY + 1, "count": count}
    ended = bench.run(_new(train__max_skipped=limit), folder, fault=fault, pictures=False)
    if count <= limit:
        skipped = sum(2 * record["share/skipped"] for record in records_of(folder / "run"))
        return _sound(ended, folder, ("loss", "gradient_norm")) + [f"{skipped} are counted"] * (skipped != count)
    told = f"{limit + 1} updates in a row had a gradient that is not finite, more than train.max_skipped={limit}"
    wrong = one_line(ended, told, "--resume run")
    ended = bench.train(folder, pictures=False).wait()  # the cause is mended
    return wrong + [f"{name} differs" for name in Result.of(folder / "run").differences(whole.result)]


def exploding(bench: Bench, whole: Reference, rate: float) -> list[str]:
    """A learning rate too high from the middle of a run on: it stops, and goes on from before as if it had not been."""
    folder = bench.place("exploding")
    shutil.copytree(whole.half / "run", folder / "run")
    config, checkpoints = folder / "run" / "config.yaml", folder / "run" / "checkpoints"
    kept, before = config.read_text(), digest(checkpoints / f"{EVERY:06d}")
    config.write_text(re.sub(r"learning_rate: [\d.e-]+", f"learning_rate: {rate}", kept))
    assert config.read_text() != kept
    wrong = one_line(bench.train(folder).wait(), f"lower train.learning_rate in {Path('run') / 'config.yaml'}")
    newest = newest_checkpoint(checkpoints)
    if newest is None or newest.name != f"{EVERY:06d}" or digest(newest) != before:
        wrong.append(f"rate {rate:g}: the last checkpoint is {newest}, or not what it was")
    config.write_text(kept)
    bench.train(folder, pictures=False).wait()
    return wrong + [f"{name} differs" for name in Result.of(folder / "run").differences(whole.result)]


def _sound(ended: Ended, folder: Path, nothing: tuple[str, ...] = ()) -> list[str]:
    """What is wrong unless the run came to its end with finite numbers alone, but for those keys of its records."""
    if ended.code != 0:
        return [f"ended with {ended.code}: {ended.said[-800:]}"]
    run = folder / "run"
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    tensors = {name: tensor for file in newest.rglob("*.safetensors") for name, tensor in load_file(file).items()}
    wrong = [f"{name} is not finite" for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    for record in records_of(run):
        wrong += [f"{name} is {value}" for name, value in record.items() if not _finite(value) and name not in nothing]
    return wrong


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _judge(folder: Path, fault: str) -> str:
    (folder / "judge.py").write_text(JUDGE.format(fault=fault))
    return f"{folder / 'judge.py'}:judge"


def _new(**changes: object) -> list[str]:
    return ["train", "--out", "run", *settings(**changes)]
