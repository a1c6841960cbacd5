"""What the experiments share: the small run that is broken, processes that train it, what must hold of its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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
#: The embedded model, all rewards and judges, a moving average; few small pictures in few steps.
SETTINGS = {
    "train.iterations": ITERATIONS, "train.checkpoint_every": EVERY, "train.sample_every": 3, "train.updates": 2,
    "train.ema": 0.5, "rollout.steps": 3, "rollout.group_size": 2, "rollout.pairs": 2, "data.size": 4,
    "policy.height": 32, "policy.width": 32, "policy.reference_sizes": "[[32, 32]]", "policy.device": "cpu",
    "evaluation.data.size": 1, "evaluation.steps": 1,
}  # fmt: skip


def settings(**changes: object) -> list[str]:
    """As options of the command; a keyword replaces a key, its dots written as two underscores."""
    values = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, below 0 the signal; its seconds of processor time; all that it said."""

    code: int
    processor: float
    said: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("error:")]


@dataclass
class Process:
    """One that is under way."""

    bench: Bench
    pid: int
    output: Path
    watch: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def work(self, seconds: float) -> None:
        """Wait until it has used so much processor time, which does not depend on what else runs; or has ended."""
        stat = Path(f"/proc/{self.pid}/stat")
        while stat.exists():
            state, *fields = stat.read_text().rpartition(")")[2].split()
            if state == "Z" or (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK") >= seconds:
                return
            time.sleep(0.002)

    @property
    def stage(self) -> str:
        return self._entered()[0]

    def _entered(self) -> tuple[str, int]:
        """The stage that it is in, and for what time in its life."""
        file = self.watch / "stage"
        name, _, number = (file.read_text().strip() if file.exists() else "").partition(" ")
        return (name, int(number)) if number else ("start", 1)

    def until(self, stage: str, number: int = 1, limit: float = 120) -> None:
        """Wait until it is in a stage that it has entered for the n-th time, or a later one that is not missed."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            name, entered = self._entered()
            if name == stage and entered >= number:
                return
            time.sleep(0.001)
        raise TimeoutError(f"not {stage!r} within {limit} s; {self.output.read_text()[-2000:]}")

    def wait(self) -> Ended:
        answer = self.bench.ask({"wait": self.pid})
        return Ended(answer["code"], answer["processor"], self.output.read_text(errors="replace"))


class Bench:
    """Starts trainings in processes of their own, forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0
        environment = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{HERE.parent}", "TQDM_DISABLE": "1"}
        # Bits must depend neither on how many threads share a sum nor on a GPU; COLUMNS keeps lines whole.
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.environment = {**environment, "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", f"{HERE.name}.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
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
        """A new empty folder."""
        self._made += 1
        folder = self.folder / f"{self._made:03d}-{name}"
        folder.mkdir(parents=True)
        return folder

    def start(
        self,
        arguments: list[str],
        folder: Path,
        *,
        fault: dict[str, Any] | None = None,
        largest: int | None = None,
        pictures: bool = True,
        patience: float | None = None,
    ) -> Process:
        """`cgrpo` with the arguments.

        `fault` as `sites.arm` takes it, `largest` the bytes that a file may have, `patience` that of
        `stopping.PATIENCE`. Without `pictures` a run ends before its charts, which take longer than all the rest.
        """
        watch = folder / "watch"
        watch.mkdir(exist_ok=True)
        self._made += 1
        output = watch / f"output-{self._made}.txt"
        (watch / "stage").unlink(missing_ok=True)
        asked = {
            "arguments": arguments, "folder": str(folder), "output": str(output), "watch": str(watch), "fault": fault,
            "largest": largest, "pictures": pictures, "patience": patience,
        }  # fmt: skip
        return Process(self, self.ask({"start": asked})["pid"], output, watch)

    def run(self, arguments: list[str], folder: Path, **how: Any) -> Ended:
        return self.start(arguments, folder, **how).wait()

    def train(self, folder: Path, *options: str, **how: Any) -> Process:
        """Start the run `folder`/run, or go on with it where it has begun."""
        begun = (folder / "run" / "config.yaml").exists()
        return self.start(["train", "--resume", "run"] if begun else new_run(*options), folder, **how)

    def command(self, arguments: list[str], folder: Path) -> subprocess.Popen[str]:
        """The same as a process that the interpreter started itself."""
        command = [sys.executable, "-m", "customized_grpo", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=folder, env=self.environment, **streams)  # type: ignore[call-overload, no-any-return]


def new_run(*options: str) -> list[str]:
    return ["train", "--out", "run", *(options or settings())]


@dataclass(frozen=True)
class Result:
    """What a run has come to: every tensor of its last checkpoint and its LoRA, its records and scores, by names."""

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
        """What differs in a single bit; times are not compared, nor the random state that a new process begins with."""
        names = [name for name in self.tensors | other.tensors if not name.endswith("/rng")]
        found = [name for name in names if not _same(self.tensors.get(name), other.tensors.get(name))]
        found += ["metrics"] * (self.records != other.records)
        return found + ["evaluation"] * (self.scores != other.scores)


def records_of(run: Path) -> list[dict[str, Any]]:
    """Its metrics, without their times."""
    records = read_records(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return [{k: v for k, v in record.items() if not k.startswith("seconds/")} for record in records]


def broken_promises(folder: Path, reference: Result) -> list[str]:
    """What of a killed run's folder is not as promised, before anything mends it."""
    run, found = folder / "run", []
    events = folder / "watch" / "events"
    told = [line.split() for line in events.read_text().splitlines()] if events.exists() else []
    checkpoints, finished = run / "checkpoints", {"checkpoint": 0, "record": 0}
    for kind, number in told:
        finished[kind] = max(finished[kind], int(number))
    try:
        newest = newest_checkpoint(checkpoints)
    except ValueError as error:
        return [str(error)]
    for checkpoint in checkpoints.glob("[0-9]*") if checkpoints.exists() else ():
        fault = fault_of(checkpoint)
        if fault is not None:
            found.append(f"checkpoint {checkpoint.name} is there and not whole: {fault}")
    kept = 0 if newest is None else int(newest.name)
    if kept < finished["checkpoint"]:
        found.append(f"checkpoint {finished['checkpoint']} was finished, the newest is {kept}")
    records = records_of(run)
    if len(records) < max(kept, finished["checkpoint"]):
        found.append(f"{len(records)} records of {max(kept, finished['checkpoint'])} iterations")
    if records != reference.records[: len(records)]:
        found.append("records differ from those of the uninterrupted run")
    return found


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    # As bytes: two NaN of the same bits are the same.
    return (
        one is not None
        and other is not None
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.numpy().tobytes() == other.numpy().tobytes()
    )
