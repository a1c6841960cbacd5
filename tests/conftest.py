"""Fixtures and hooks of all tests.

Tests run on the CPU, because many guarantees (bit-exact repetition, equal results of several processes) are made for
CPUs. GPUs are visible only if tests marked `gpu` are selected by `-m gpu`, as `make test-gpu` does.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from typing import Any

import commands
import pytest

# Before tqdm is imported: bars of other libraries would stand before the one line that an error is.
os.environ.setdefault("TQDM_DISABLE", "1")
SHARED_OUT = "PYTEST_XDIST_WORKER" in os.environ
if SHARED_OUT:  # Before torch is imported: there is a process for each core, and what tests compute is small.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: The files that take longest, the longest first; one of them begun last would be waited for by all.
LONGEST = (
    "tests/test_docs.py", "tests/faults/test_faults.py", "tests/benchmarks/test_gpu_benchmark.py",
    "tests/planning/test_memory.py", "tests/trainer/test_processes.py", "tests/experiments/test_study.py",
    "tests/test_cli.py", "tests/bad_inputs/test_bad_inputs.py", "tests/planning/test_plan_command.py",
    "tests/benchmarks/test_bench.py", "tests/planning/test_recipes.py", "tests/rewards/test_vlm.py",
    "tests/reporting/test_report.py",
)  # fmt: skip


def gpus_are_asked_for(config: pytest.Config) -> bool:
    """Whether the option -m selects tests that are marked `gpu`."""
    return re.search(r"(?<!not )\bgpu\b", config.known_args_namespace.markexpr) is not None


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Hide GPUs from this process and from those that it starts.

    No option is added: of the hooks of a conftest.py this is the first, before anything has imported torch.
    """
    config = pluginmanager.get_plugin("pytestconfig")
    assert isinstance(config, pytest.Config)
    if not gpus_are_asked_for(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    gc.disable()  # a fifth of the time of importing torch and the like


def why_no_gpu(config: pytest.Config) -> str | None:
    """The reason for which tests that need a GPU are skipped; None where there is one for them."""
    if not gpus_are_asked_for(config):
        return "needs a CUDA GPU, which is hidden from ordinary tests: run make test-gpu, or pytest -m gpu"
    import torch

    if torch.cuda.is_available():
        return None
    return f"needs a CUDA GPU, and torch {torch.__version__} finds none"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; the longest files first, where files are shared out."""
    gc.freeze()  # what was imported stays: collections need not look at it again
    gc.enable()
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and (reason := why_no_gpu(config)):
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=reason))
    if SHARED_OUT:
        rank = {file: place for place, file in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Remove what a test or a document's code registers after it, so that tests pass in any order."""
    from customized_grpo.config.kinds import KINDS
    from customized_grpo.method import OBJECTIVES

    known = [(registry, dict(registry)) for registry in (KINDS, OBJECTIVES)]
    yield
    for registry, before in known:
        registry.clear()
        registry.update(before)


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have no ticks, as in processes of `commands`."""
    commands.quick_figures(monkeypatch.setattr)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Matplotlib figures that the test saved, in their order."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(self: Figure, *args: object, **options: object) -> None:
        savefig(self, *args, **options)  # type: ignore[arg-type]
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
