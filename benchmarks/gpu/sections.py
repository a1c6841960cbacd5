"""The sections of the benchmark and the loop that runs them and records their rows."""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import attention, iteration, model
from benchmarks.gpu.context import Context
from benchmarks.gpu.timing import Row
from benchmarks.gpu.worker import Worker, WorkerError, first_line
from customized_grpo.utils.machine import hardware, versions
from customized_grpo.utils.records import write_json

RESULTS = "gpu.json"
_START_SECONDS = 90.0  # for a process to start and make its model


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Args:
        name: Name in `--sections` and in the JSON.
        title: Heading in tables and in docs/gpu.md; the docstring of `measure` is the text below it.
        measure: Generator of rows.
        needs: Seconds on one H100. The section is skipped if less is left, and killed after about twice as long.
        process: Consecutive sections with the same value share a process and the model in it; "" is the main process.
    """

    name: str
    title: str
    measure: Callable[[Context], Iterator[Row]]
    needs: float
    process: str = "model"

    @property
    def notes(self) -> str:
        """Explanation of the numbers, for docs/gpu.md."""
        return " ".join(inspect.cleandoc(self.measure.__doc__ or "").split())


#: Most important first.
SECTIONS = (
    Section("attention", "Attention calls by backend", attention.attention, 40, process=""),
    Section("peak", "Matrix products", model.peak, 5),
    Section("velocity", "Velocity without gradients", model.velocity, 35),
    Section("training", "Forward and backward", model.training, 40),
    Section("kontext", "An iteration of recipes/kontext-dev.yaml", iteration.kontext, 35),
    Section("adamw", "AdamW at rank 512", model.adamw, 8),
    Section("paper", "An iteration of recipes/paper.yaml", iteration.paper, 35),
    Section("ratios", "Log-ratios before the first optimizer step", model.ratios, 15),
    Section("launch", "Launch overhead", model.launch, 18),
    Section("decode", "VAE decoding", model.decode, 6),
    Section("scoring", "Reward models", model.scoring, 10),
    Section("high-resolution", "1024x1024", model.high_resolution, 10),
    Section("default", "`cgrpo train` with no options", iteration.default_training, 75, process="default"),
    Section("model-attention", "The model by attention backend", model.by_attention, 30),
    Section("compile", "policy.compile", model.compiled, 25),
)


def named(names: str | None) -> list[Section]:
    """Return the sections of comma-separated names in the benchmark's order; all for None.

    Raises:
        ValueError: A name is unknown.
    """
    chosen = [section.name for section in SECTIONS] if names is None else names.split(",")
    for name in chosen:
        if name not in {section.name for section in SECTIONS}:
            known = ", ".join(section.name for section in SECTIONS)
            raise ValueError(f"--sections: there is no {name!r}; give some of {known}")
    return [section for section in SECTIONS if section.name in chosen]


def run(
    sections: Sequence[Section],
    out: Path,
    *,
    isolate: bool,
    limit: float,
    command: str,
    context: Context,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the sections in their order and return the record, which is written to `out`/gpu.json after every row.

    Args:
        sections: Sections to run.
        out: Folder of gpu.json and of the processes' logs.
        isolate: Run each group of sections in a process of its own, whose end the others survive.
        limit: Seconds for the whole run.
        command: Command line, for the record.
        context: Models of this process; a child makes its own on the same folder.
        say: Prints a line of progress.
    """
    out.mkdir(parents=True, exist_ok=True)  # for the processes' logs
    began = time.monotonic()
    record: dict[str, Any] = {
        "command": command, "tiny": context.tiny, "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "time_limit": limit, "machine": machine(context.device), "seconds": {}, "results": {}, "failures": {},
        "skipped": {},
    }  # fmt: skip

    def write() -> None:
        record["seconds"]["total"] = time.monotonic() - began
        write_json(out / RESULTS, record)

    worker: Worker | None = None
    process = ""
    try:
        for section in sections:
            start, left = time.monotonic(), limit - (time.monotonic() - began)
            if left < section.needs:
                record["skipped"][section.name] = f"{max(0.0, left):.0f} s were left, it needs {section.needs:.0f} s"
                say(f"{section.name}: skipped, {record['skipped'][section.name]}")
                continue
            rows = record["results"][section.name] = []
            seconds = 2 * section.needs + 20
            log = out / f"{section.process}.log"
            if section.process != process and worker is not None:
                worker.close()
                worker = None
            process = section.process
            try:
                if isolate and process:
                    if worker is None:
                        worker, seconds = Worker(str(log)), seconds + _START_SECONDS
                    found = worker.run(_in_child, section, context.tiny, context.folder, seconds=min(seconds, left))
                else:
                    found = section.measure(context)
                for row in found:
                    rows.append(row)
                    write()
                context.tidy()
            except Exception as error:
                what = f"{error}; see {log.name}" if isinstance(error, WorkerError) else first_line(error)
                record["failures"][section.name] = what
                if worker is not None:  # a device that no longer answers may have been the cause
                    worker.close()
                    worker = None
            record["seconds"][section.name] = spent = time.monotonic() - start
            failed = sum("failed" in row for row in rows)
            ending = f", {failed} of them failed" if failed else ""
            if section.name in record["failures"]:
                ending += f"; FAILED: {record['failures'][section.name]}"
            say(f"{section.name}: {len(rows)} rows in {spent:.1f} s{ending}")
    finally:
        if worker is not None:
            worker.close()
        write()
    return record


def _in_child(section: Section, tiny: bool, folder: Path) -> Iterator[Row]:
    context = _context(tiny, folder)
    yield from section.measure(context)
    context.tidy()


@cache
def _context(tiny: bool, folder: Path) -> Context:
    return Context(tiny=tiny, folder=folder)


def machine(device: torch.device) -> Row:
    """Return the device and the versions that its results depend on."""
    found: Row = {**hardware(device), "CPUs": os.cpu_count(), "versions": versions()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver = Path("/proc/driver/nvidia/version")
        number = re.search(r"\s(\d+\.[\d.]+)\s", driver.read_text(encoding="utf-8") if driver.exists() else "")
        found |= {
            "memory_gb": properties.total_memory / 1e9,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": number[1] if number else "of an unknown version",
        }
    return found
