"""Asking a run to end: SIGTERM, Ctrl-C, Ctrl-C twice; in every stage, and where something does not want to."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from customized_grpo.trainer.checkpoint import newest_checkpoint

from .bench import Bench, Ended, Process, Result, broken_promises, records_of
from .kills import Reference

LIMIT = 30.0  #: seconds that a preempted node is given

#: A judge that lets nothing through: what it is told by an exception it does not hear.
DEAF = """
import time

def deaf(images, pairs):
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass
"""


@dataclass
class Request:
    """One run that was asked to end."""

    name: str
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def politely(bench: Bench, whole: Reference, stage: str, number: int, by: signal.Signals) -> Request:
    """Ask once, when the run enters a stage for the n-th time: all iterations done are saved, the rest is as it was."""
    request = Request(f"{by.name} in {stage}")
    folder = bench.place("asked")
    process = bench.train(folder, pictures=False)
    process.until(stage, number)
    ended = _ask(process, request, by)
    if ended.code != 128 + by or len(ended.errors) != 1 or f"saved and stopped by {by.name}" not in ended.errors[0]:
        request.wrong.append(f"ended with {ended.code}: {ended.said[-500:]}")
    done, newest = records_of(folder / "run"), newest_checkpoint(folder / "run" / "checkpoints")
    if newest is None or int(newest.name) != len(done):
        request.wrong.append(f"{len(done)} iterations are done, the checkpoint is {newest}")
    # Pictures that were to be drawn are left undrawn: that iteration's record is without their scores.
    lost = [key for one, other in zip(done, whole.result.records, strict=False) for key in other if key not in one]
    if stage not in ("updating", "evaluation") or any(not key.startswith("evaluation/") for key in lost):
        request.wrong += [f"records lack {lost}"] * bool(lost)
    expected = Result(whole.result.tensors, [*done, *whole.result.records[len(done) :]], whole.result.scores)
    shared = [{k: v for k, v in r.items() if k in d} for r, d in zip(whole.result.records, done, strict=False)]
    if done != shared:
        request.wrong.append("records differ")
    ended = bench.train(folder, pictures=False).wait()
    if ended.code:
        request.wrong.append(f"cannot go on: {ended.said[-500:]}")
    else:
        request.wrong += [f"{name} differs" for name in Result.of(folder / "run").differences(expected)]
    return request


def in_vain(bench: Bench, whole: Reference, patience: float | None, twice: bool) -> Request:
    """Ask a run that is inside a judge who does not hear: Ctrl-C again ends it at once, time ends it else."""
    request = Request("Ctrl-C twice, in a deaf judge" if twice else "SIGTERM, in a deaf judge")
    folder = bench.place("deaf")
    shutil.copytree(whole.half / "run", folder / "run")
    kept = (folder / "run" / "config.yaml").read_bytes()
    _replace_judge(folder, DEAF)
    process = bench.train(folder, patience=patience)
    process.until("scoring")
    if twice:
        process.kill(signal.SIGINT)
        _until(lambda: "stopping" in process.output.read_text())
    ended = _ask(process, request, signal.SIGINT if twice else signal.SIGTERM)
    expected, limit = (-signal.SIGINT, 2.0) if twice else (128 + signal.SIGTERM, LIMIT)
    if ended.code != expected or request.seconds > limit:
        request.wrong.append(f"ended with {ended.code} after {request.seconds:.1f} s: {ended.said[-300:]}")
    request.wrong += broken_promises(folder, whole.result)
    (folder / "run" / "config.yaml").write_bytes(kept)
    ended = bench.train(folder, pictures=False).wait()
    request.wrong += [f"{name} differs" for name in Result.of(folder / "run").differences(whole.result)]
    return request


def _ask(process: Process, request: Request, by: signal.Signals) -> Ended:
    began = time.monotonic()
    process.kill(by)
    ended = process.wait()
    request.seconds = time.monotonic() - began
    if request.seconds > LIMIT:
        request.wrong.append(f"took {request.seconds:.1f} s")
    return ended


def _replace_judge(folder: Path, code: str) -> None:
    """Have the run's first judge be the function that `code` defines."""
    (folder / "judge.py").write_text(code)
    name = re.search(r"def (\w+)", code)
    assert name is not None
    config = folder / "run" / "config.yaml"
    text = config.read_text()
    assert text.count("kind: dino\n") >= 1
    config.write_text(text.replace("kind: dino\n", f"kind: {folder / 'judge.py'}:{name[1]}\n", 1))


def _until(happened: Callable[[], bool], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
