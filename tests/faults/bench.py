"""The small run that is broken, processes that train it, and what must hold of its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file

from customized_grpo.trainer.checkpoint import fault_of, newest_checkpoint
from customized_grpo.utils.records import read_records

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
ITERATIONS, EVERY = 5, 2
#: The embedded model, all rewards and monitors, a moving average; few small images in few steps.
SETTINGS = {
    "train.iterations": ITERATIONS, "train.checkpoint_every": EVERY, "train.sample_every": 3, "train.updates": 2,
    "train.ema": 0.5, "rollout.steps": 3, "rollout.group_size": 2, "rollout.pairs": 2, "data.size": 4,
    "policy.height": 32, "policy.width": 32, "policy.reference_sizes": [[32, 32]], "policy.device": "cpu",
    "evaluation.data.size": 1, "evaluation.steps": 1,
}  # fmt: skip


def set_options(**changes: object) -> list[str]:
    """Options of a run; a keyword replaces a setting, with two underscores for a dot."""
    values = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def new_run(**changes: object) -> list[str]:
    """Arguments of a new run."""
    return ["train", "--out", "run", *set_options(**changes)]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (below 0 the signal), its seconds of processor time, its output."""

    code: int
    processor: float
    output: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error:")]

    def lacks_line(self, *parts: str) -> list[str]:
        """Return what is wrong unless it ended with code 2 and one line that has all parts."""
        fits = self.code == 2 and len(self.errors) == 1 and "Traceback" not in self.output
        if fits and all(part in self.errors[0] for part in parts):
            return []
        return [f"expected one line with {parts}, got {self.code}: {self.output[-800:]}"]


@dataclass
class Process:
    """A process that is running."""

    bench: Bench
    pid: int
    output: Path
    watch: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def work(self, seconds: float) -> None:
        """Wait until it has used so much processor time, which does not depend on other load, or has ended."""
        stat = Path(f"/proc/{self.pid}/stat")
        while stat.exists():
            state, *fields = stat.read_text().rpartition(")")[2].split()
            if state == "Z" or (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK") >= seconds:
                return
            time.sleep(0.002)

    @property
    def stage(self) -> tuple[str, int]:
        """The stage that it is in, and how often it has entered it."""
        file = self.watch / "stage"
        name, _, number = (file.read_text().strip() if file.exists() else "").partition(" ")
        return (name, int(number)) if number else ("start", 1)

    def until(self, stage: str, number: int = 1, limit: float = 120) -> None:
        """Wait until it is in a stage that it has entered for at least the n-th time."""

        def there() -> bool:
            name, entered = self.stage
            return name == stage and entered >= number

        self.wait_for(there, repr(stage), limit)

    def wait_for(self, happened: Callable[[], bool], what: str, limit: float = 120) -> None:
        """Wait until something has happened. Raises TimeoutError, with the end of the output."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if happened():
                return
            time.sleep(0.001)
        raise TimeoutError(f"not {what} within {limit} s; {self.output.read_text()[-2000:]}")

    def wait(self) -> Ended:
        answer = self.bench.ask({"wait": self.pid})
        return Ended(answer["code"], answer["processor"], self.output.read_text(errors="replace"))


class Bench:
    """Starts trainings in processes of their own, forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0
        # Bits must depend neither on how many threads share a sum nor on a GPU; COLUMNS keeps lines whole.
        settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}
        settings |= {"PYTHONPATH": f"{SOURCE}{os.pathsep}{HERE.parent}", "TQDM_DISABLE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", f"{HERE.name}.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **settings},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def place(self, name: str) -> Path:
        """Return a new empty folder."""
        self._made += 1
        folder = self.folder / f"{self._made:03d}-{name}"
        folder.mkdir(parents=True)
        return folder

    def start(self, arguments: list[str], folder: Path, **how: Any) -> Process:
        """Start `cgrpo` with the arguments.

        `how` may hold `fault` as `sites.arm` takes it, `largest`, the bytes that a file may have, `patience`, that of
        `stopping.PATIENCE`, `limit`, the seconds of processor time that it may use, and `images`: without them a run
        ends before its report, which takes longest.
        """
        watch = folder / "watch"
        watch.mkdir(exist_ok=True)
        self._made += 1
        output = watch / f"output-{self._made}.txt"
        (watch / "stage").unlink(missing_ok=True)
        paths = {"folder": str(folder), "output": str(output), "watch": str(watch)}
        return Process(self, self.ask({"start": {"arguments": arguments, **paths, **how}})["pid"], output, watch)

    def run(self, arguments: list[str], folder: Path, **how: Any) -> Ended:
        return self.start(arguments, folder, **how).wait()

    def train(self, folder: Path, *options: str, **how: Any) -> Process:
        """Start the run `folder`/run, or resume it if it has begun."""
        begun = (folder / "run" / "config.yaml").exists()
        return self.start([*(["train", "--resume", "run"] if begun else new_run()), *options], folder, **how)

    def ends_differently(self, folder: Path, expected: Result) -> list[str]:
        """Resume a run to its end; return how it differs from what is expected."""
        ended = self.train(folder).wait()
        if ended.code != 0:
            return [f"cannot be resumed: {ended.output[-500:]}"]
        run = folder / "run"
        left = [f"{path.relative_to(run)} is left" for path in run.rglob(".*") if not path.name.startswith(".lock")]
        return left + [f"{name} differs" for name in Result.of(run).differences(expected)]


@dataclass(frozen=True)
class Result:
    """Tensors of a run's last checkpoint and LoRA by name, its records and evaluation scores."""

    tensors: dict[str, torch.Tensor]
    records: list[dict[str, Any]]
    scores: list[str]

    @staticmethod
    def of(run: Path) -> Result:
        newest = newest_checkpoint(run / "checkpoints")
        assert newest is not None, f"{run}: no checkpoint"
        files = [*sorted(newest.rglob("*.safetensors")), *sorted((run / "lora").glob("*.safetensors"))]
        assert len(files) == 3, files
        tensors = {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}
        scores = [(run / "evaluation" / name / "scores.json").read_text() for name in ("base", "tuned")]
        return Result(tensors, records_of(run), scores)

    def differences(self, other: Result) -> list[str]:
        """Return what differs in a single bit, except times and the random state that a process begins with."""
        own, others = ({k: v.numpy().tobytes() for k, v in r.tensors.items()} for r in (self, other))
        found = [name for name in own | others if own.get(name) != others.get(name) and not name.endswith("/rng")]
        found += ["metrics"] * (self.records != other.records)
        return found + ["evaluation"] * (self.scores != other.scores)


def records_of(run: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without times."""
    records = read_records(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return [{k: v for k, v in record.items() if not k.startswith("seconds/")} for record in records]


def broken_promises(folder: Path, expected: Result) -> list[str]:
    """Return what of a killed run's folder is not as promised, before anything repairs it."""
    run, found = folder / "run", []
    finished = {"checkpoint": 0, "record": 0}
    events = folder / "watch" / "events"
    for line in events.read_text().splitlines() if events.exists() else ():
        kind, number = line.split()
        finished[kind] = max(finished[kind], int(number))
    try:
        newest = newest_checkpoint(run / "checkpoints")
    except ValueError as error:
        return [str(error)]
    for checkpoint in (run / "checkpoints").glob("[0-9]*"):
        fault = fault_of(checkpoint)
        if fault is not None:
            found.append(f"checkpoint {checkpoint.name} is there and not whole: {fault}")
    kept = 0 if newest is None else int(newest.name)
    if kept < finished["checkpoint"]:
        found.append(f"checkpoint {finished['checkpoint']} was finished, the newest is {kept}")
    records = records_of(run)
    if len(records) < max(kept, finished["checkpoint"]):
        found.append(f"{len(records)} records of {max(kept, finished['checkpoint'])} iterations")
    if records != expected.records[: len(records)]:
        found.append("records differ from those of the uninterrupted run")
    return found
