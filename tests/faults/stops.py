"""Stop requests: SIGTERM, Ctrl-C, Ctrl-C twice; in every stage, and in a reward that does not react."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import dataclass, field

from customized_grpo.trainer.checkpoint import newest_checkpoint

from .bench import Bench, Ended, Process, Result, broken_promises, records_of
from .kills import Reference

LIMIT = 30.0  #: seconds that a preempted node is given

#: A reward that catches every exception, and leaves a file once it does.
DEAF = """
import time
from pathlib import Path

def deaf(images, pairs):
    while True:
        try:
            Path(__file__).with_name("inside").touch()
            time.sleep(600)
        except BaseException:
            pass
"""


@dataclass
class Request:
    """One run that was asked to stop."""

    name: str
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def politely(bench: Bench, whole: Reference, stage: str, number: int, by: signal.Signals) -> Request:
    """Ask once, when the run enters a stage for the n-th time: all iterations done are saved, and it can be resumed."""
    request, folder = Request(f"{by.name} in {stage}"), bench.place("asked")
    process = bench.train(folder)
    process.until(stage, number)
    ended = _ask(process, request, by)
    if ended.code != 128 + by or ended.errors or f"saved and stopped by {by.name}" not in ended.output:
        request.wrong.append(f"ended with {ended.code}: {ended.output[-500:]}")
    done, newest = records_of(folder / "run"), newest_checkpoint(folder / "run" / "checkpoints")
    if newest is None or int(newest.name) != len(done):
        request.wrong.append(f"{len(done)} iterations are done, the checkpoint is {newest}")
    # A stop before or in an evaluation leaves that iteration's record without its scores.
    reference = whole.result.records
    for one, other in zip(done, reference, strict=False):
        lost = other.keys() - one.keys()
        if any(stage not in ("updating", "evaluation") or not key.startswith("evaluation/") for key in lost):
            request.wrong.append(f"records lack {lost}")
        if one != {key: value for key, value in other.items() if key in one}:
            request.wrong.append("records differ")
    expected = Result(whole.result.tensors, [*done, *reference[len(done) :]], whole.result.scores)
    request.wrong += bench.ends_differently(folder, expected)
    return request


def in_vain(bench: Bench, whole: Reference, patience: float | None, twice: bool) -> Request:
    """Ask a run that is inside a deaf reward: a second Ctrl-C ends it at once, the time limit otherwise."""
    request = Request("Ctrl-C twice, in a deaf reward" if twice else "SIGTERM, in a deaf reward")
    folder = bench.place("deaf")
    shutil.copytree(whole.half / "run", folder / "run")
    config = folder / "run" / "config.yaml"
    kept = config.read_text()
    (folder / "reward.py").write_text(DEAF)
    config.write_text(kept.replace("kind: dino\n", f"kind: {folder / 'reward.py'}:deaf\n", 1))
    assert config.read_text() != kept
    process = bench.train(folder, "--allow-changes", patience=patience)
    process.wait_for((folder / "inside").exists, "inside the reward")
    if twice:
        process.kill(signal.SIGINT)
        process.wait_for(lambda: "stopping" in process.output.read_text(), "stopping")
    ended = _ask(process, request, signal.SIGINT if twice else signal.SIGTERM)
    expected, limit = (-signal.SIGINT, 2.0) if twice else (128 + signal.SIGTERM, LIMIT)
    if ended.code != expected or request.seconds > limit:
        request.wrong.append(f"ended with {ended.code} after {request.seconds:.1f} s: {ended.output[-300:]}")
    request.wrong += broken_promises(folder, whole.result)
    config.write_text(kept)
    request.wrong += bench.ends_differently(folder, whole.result)
    return request


def _ask(process: Process, request: Request, by: signal.Signals) -> Ended:
    began = time.monotonic()
    process.kill(by)
    ended = process.wait()
    request.seconds = time.monotonic() - began
    if request.seconds > LIMIT:
        request.wrong.append(f"took {request.seconds:.1f} s")
    return ended
