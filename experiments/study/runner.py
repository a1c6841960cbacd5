"""Working through a study: each run in a process of its own, several side by side, resumed where it was cut off."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from rich.console import Console

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config, save_config
from customized_grpo.evaluation import read_evaluation
from customized_grpo.utils.records import aside, move_folder
from customized_grpo.utils.stopping import ended_by_sigterm
from experiments.study.plan import StudyRun
from experiments.study.results import Result, append_result, collect, finished, read_results

LOG = "output.txt"


def default_processes() -> int:
    """One for each GPU; without any, one."""
    return max(1, torch.cuda.device_count())


def run_all(runs: list[StudyRun], out: Path, processes: int, console: Console) -> list[Result]:
    """Do what is not done yet; returns all results. Each is on the disk as soon as its run has ended.

    Raises ConfigError where a run fails, Stopped by a SIGTERM: those under way are stopped and can be resumed.
    """
    done = finished(runs, read_results(out), out)
    waiting = [run for run in runs if (run.row, run.seed) not in done]
    for run in waiting:
        _prepare(run, out)
    console.print(f"{len(runs)} runs, {len(done)} of them done; {min(processes, len(waiting))} at a time; folder {out}")
    workers = _Workers(out, processes)
    start, ended = time.monotonic(), 0
    queue = iter(waiting)
    stopped = f"{out}: stopped by SIGTERM, the runs under way saved; run the study again to go on"
    with ended_by_sigterm(stopped), ThreadPoolExecutor(processes) as pool:
        under_way: dict[Future[None], StudyRun] = {}
        try:
            for _ in range(processes):
                _next(pool, queue, workers, under_way)
            while under_way:
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    run = under_way.pop(future)
                    future.result()
                    result = collect(run, out / run.folder)
                    append_result(out, result)
                    ended += 1
                    left = (time.monotonic() - start) / ended * (len(waiting) - ended)
                    console.print(f"{len(done) + ended}/{len(runs)}  {_line(result)}  {_clock(left)} left")
                    _next(pool, queue, workers, under_way)
        finally:
            workers.stop()
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
            self._lend_base(run)
            with (folder / LOG).open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "customized_grpo", "train", "--resume", str(folder)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._environment(place)},
                )
            self._running.add(child)
        code = child.wait()
        with self._lock:
            self._running.discard(child)
            self._free.append(place)
        if code != 0 and not self._stopped:
            lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            told = lines[-1].strip() if lines else f"exit code {code}"
            raise ConfigError(f"{run.row!r}, seed {run.seed}: {told}; see {folder / LOG}, then run the study again")

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.terminate()

    def _environment(self, place: int) -> dict[str, str]:
        gpus = torch.cuda.device_count()
        if gpus:
            # The caller's own list may name others than the first, by number or by UUID.
            given = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
            visible = given[:gpus] or [str(gpu) for gpu in range(gpus)]
            return {"CUDA_VISIBLE_DEVICES": visible[place % len(visible)]}
        threads = max(1, _cores() // self._count)
        return {"OMP_NUM_THREADS": str(threads)}

    def _lend_base(self, run: StudyRun) -> None:
        """The base model's pictures are the same for all rows of one model: draw them once."""
        mine = self._out / run.folder / "evaluation/base"
        if mine.exists():
            return
        for config in sorted(self._out.glob("*/seed-*/config.yaml")):
            base = config.parent / "evaluation/base"
            if (base / "scores.json").exists() and _same_base(load_config(config), run.config):
                if read_evaluation(base, run.config.evaluation) is not None:
                    partial = aside(mine)
                    shutil.copytree(base, partial, dirs_exist_ok=True)
                    move_folder(partial, mine)
                return


def _cores() -> int:
    """Those that this process may use, which a container or `taskset` may make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _same_base(one: Config, other: Config) -> bool:
    same_model = one.policy.model_copy(update={"lora": None}) == other.policy.model_copy(update={"lora": None})
    return same_model and one.evaluation == other.evaluation and one.rewards == other.rewards


def _prepare(run: StudyRun, out: Path) -> None:
    """The run's folder with its configuration. Raises ConfigError where it holds another one."""
    folder = out / run.folder
    config = folder / "config.yaml"
    if config.exists() and load_config(config) != run.config:
        raise ConfigError(f"{folder}: begun with other settings; remove it, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    save_config(run.config, config)


def _next(
    pool: ThreadPoolExecutor, queue: Iterator[StudyRun], workers: _Workers, under_way: dict[Future[None], StudyRun]
) -> None:
    run = next(queue, None)
    if run is not None:
        under_way[pool.submit(workers.train, run)] = run


def _line(result: Result) -> str:
    gains = "  ".join(f"{name} {result.base[name]:.1f} to {result.tuned[name]:.1f}" for name in result.tuned)
    return f"{result.row}, seed {result.seed}  {gains}"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"
