"""`cgrpo train` with no options, from the command to the final evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

from benchmarks.gpu.context import Context
from benchmarks.gpu.sections import Row
from customized_grpo.utils.records import read_records

#: With `tiny`, the same command on less.
_SHORT = (
    "train.iterations=2", "train.updates=1", "train.sample_every=2", "rollout.steps=2", "rollout.group_size=2",
    "rollout.pairs=1", "evaluation.data.size=2", "evaluation.images=1", "evaluation.steps=1",
    "train.trackers=[]",
)  # fmt: skip


def default(context: Context) -> Iterator[Row]:
    run = context.folder / "default"
    short = [part for setting in _SHORT for part in ("--set", setting)] if context.tiny else []
    command = [sys.executable, "-m", "customized_grpo", "train", "--out", str(run), *short]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"cgrpo train exited with {done.returncode}: {''.join(last)}")
    iterations = [record["seconds/total"] for record in read_records(run / "metrics.jsonl")]
    row: Row = {
        "seconds": seconds,
        "iterations": len(iterations),
        "seconds_per_iteration": {
            "median": median(iterations), "min": min(iterations), "max": max(iterations), "repeats": len(iterations),
        },
    }  # fmt: skip
    base, tuned = (_means(run / "evaluation" / name / "scores.json") for name in ("base", "tuned"))
    for name in ("identity", "prompt"):
        row[f"{name}_gain"] = 100 * (tuned[name] - base[name]) / base[name]
    yield row


def _means(scores: Path) -> dict[str, float]:
    """Mean score by the reward's name."""
    found = json.loads(scores.read_text(encoding="utf-8"))["scores"]
    return {name: mean(value for value in values if value is not None) for name, values in found.items()}
