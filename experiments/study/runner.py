"""Work through a study: each run in a process of its own, several side by side, resumed after an interruption."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from rich.console import Console

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config, save_config
from customized_grpo.evaluation import read_evaluation
from customized_grpo.utils.records import append_record, move_folder, temporary_folder
from customized_grpo.utils.stopping import ended_by_sigterm
from experiments.study.plan import StudyRun
from experiments.study.results import RESULTS, Result, collect, finished, read_results

LOG = "output.txt"


def run_all(runs: list[StudyRun], out: Path, processes: int, console: Console) -> list[Result]:
    """Run the missing runs and return all results; each is stored as soon as its run has ended.

    Raises:
        ConfigError: A run failed; those in progress are stopped and can be resumed.
        Stopped: By a SIGTERM, likewise.
    """
    done = finished(runs, read_results(out), out)
    waiting = [run for run in runs if (run.row, run.seed) not in done]
    for run in waiting:
        _prepare(run, out)
    console.print(f"{len(runs)} runs, {len(done)} of them done; {min(processes, len(waiting))} at a time; folder {out}")
    workers, start = _Workers(out, processes), time.monotonic()
    stopped = f"{out}: stopped by SIGTERM, the runs in progress are saved; run the study again to continue"
    with ended_by_sigterm(stopped), ThreadPoolExecutor(processes) as pool:
        try:
            futures = {pool.submit(workers.train, run): run for run in waiting}
            for ended, future in enumerate(as_completed(futures), start=1):
                future.result()
                result = collect(futures[future], out / futures[future].folder)
                append_record(out / RESULTS, result.model_dump())
                minutes = round((time.monotonic() - start) / ended * (len(waiting) - ended) / 60)
                scores = "  ".join(f"{name} {result.base[name]:.1f} to {one:.1f}" for name, one in result.tuned.items())
                console.print(
                    f"{len(done) + ended}/{len(runs)}  {result.row}, seed {result.seed}  {scores}  "
                    f"{minutes // 60}:{minutes % 60:02d} h left"
                )
        finally:
            workers.stop()
            pool.shutdown(cancel_futures=True)
    return read_results(out)


class _Workers:
    """Child processes that each train one run, on a GPU or a share of the cores of their own."""

    def __init__(self, out: Path, count: int) -> None:
        self._out, self._count = out, count
        self._free = list(range(count))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def train(self, run: StudyRun) -> None:
        folder = self._out / run.folder
        with self._lock:
            if self._stopped:
                return
            place = self._free.pop(0)
            _lend_base(self._out, run)
            with (folder / LOG).open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "customized_grpo", "train", "--resume", str(folder)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environment(place, self._count),
                )
            self._running.add(child)
        code = child.wait()
        with self._lock:
            self._running.discard(child)
            self._free.append(place)
        if code != 0 and not self._stopped:
            lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1].strip() if lines else f"exit code {code}"
            raise ConfigError(f"{run.row!r}, seed {run.seed}: {last}; see {folder / LOG}, then run the study again")

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.terminate()


def environment(place: int, count: int) -> dict[str, str]:
    """Return the variables that give one of `count` processes its GPU, or its share of the cores."""
    gpus = torch.cuda.device_count()
    if gpus:
        # The caller's own list may name others than the first, by number or by UUID.
        given = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
        visible = given[:gpus] or [str(gpu) for gpu in range(gpus)]
        return {"CUDA_VISIBLE_DEVICES": visible[place % len(visible)]}
    # A container or `taskset` may allow fewer cores than there are; macOS cannot tell.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // count))}


def _lend_base(out: Path, run: StudyRun) -> None:
    """Copy the base model's evaluation from another row of the same model, which has the same images."""
    mine = out / run.folder / "evaluation/base"
    if mine.exists():
        return
    for config in sorted(out.glob("*/seed-*/config.yaml")):
        base = config.parent / "evaluation/base"
        if (base / "scores.json").exists() and _same_base(load_config(config), run.config):
            if read_evaluation(base, run.config.evaluation) is not None:
                partial = temporary_folder(mine)
                shutil.copytree(base, partial, dirs_exist_ok=True)
                move_folder(partial, mine)
            return


def _same_base(one: Config, other: Config) -> bool:
    same_model = one.policy.model_copy(update={"lora": None}) == other.policy.model_copy(update={"lora": None})
    return same_model and one.evaluation == other.evaluation and one.rewards == other.rewards


def _prepare(run: StudyRun, out: Path) -> None:
    """Make the run's folder with its configuration. Raises ConfigError if it contains another one."""
    folder = out / run.folder
    config = folder / "config.yaml"
    if config.exists() and load_config(config) != run.config:
        raise ConfigError(f"{folder}: begun with other settings; remove it, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    save_config(run.config, config)
