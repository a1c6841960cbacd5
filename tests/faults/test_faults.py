"""The shortened form of `python -m tests.faults`: every part, a few of its cases."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import kills, numerics, places, stops
from .bench import Bench
from .kills import Reference
from .soak import soak


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("faults")) as bench:
        yield bench


@pytest.fixture(scope="module")
def whole(bench: Bench) -> Reference:
    return kills.reference(bench, pictures=False)


@pytest.mark.parametrize("site", ["inside a metrics line", "inside a file of tensors"])
def test_a_run_killed_inside_a_write_is_what_it_would_have_been(bench: Bench, whole: Reference, site: str) -> None:
    (trial,) = kills.at_sites(bench, whole, [site], random.Random())
    assert trial.killed and not trial.wrong


def test_so_is_one_killed_at_any_moment(bench: Bench, whole: Reference) -> None:
    trials = list(kills.at_moments(bench, whole, 2, random.Random()))
    assert sum(len(trial.killed) for trial in trials) == 2
    assert not [wrong for trial in trials for wrong in trial.wrong]


def test_a_sigterm_saves_and_a_second_ctrl_c_does_not_wait(bench: Bench, whole: Reference) -> None:
    assert not stops.politely(bench, whole, "sampling", 2, signal.SIGTERM).wrong
    assert not stops.in_vain(bench, whole, None, twice=True).wrong


def test_a_process_that_cannot_save_leaves_all_the_same(bench: Bench, whole: Reference) -> None:
    request = stops.in_vain(bench, whole, 1.0, twice=False)
    assert not request.wrong and request.seconds < 10


def test_a_full_disk_is_one_line_and_costs_nothing(bench: Bench, whole: Reference) -> None:
    wrong = places.full_disk(bench, whole, 0.5)
    assert not (places.too_large_file(bench, whole) if wrong is None else wrong)


def test_two_processes_cannot_have_one_run(bench: Bench, whole: Reference) -> None:
    assert not places.in_use(bench, whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_read_only_folder_is_one_line(bench: Bench, whole: Reference) -> None:
    wrong = places.read_only(bench, whole)
    if wrong is None:
        pytest.skip("this machine mounts nothing")
    assert not wrong


def test_damaged_checkpoints_are_passed_over_or_refused(bench: Bench, whole: Reference) -> None:
    assert not places.flipped_bits(bench, whole, 1, random.Random())
    assert not places.missing_part(bench, whole)


def test_what_another_version_or_model_wrote_is_refused(bench: Bench, whole: Reference) -> None:
    assert not places.other_model(bench, whole)
    assert not places.older_versions(bench, whole)


def test_gradients_of_nan_are_skipped_up_to_a_number(bench: Bench, whole: Reference) -> None:
    assert not numerics.bad_gradients(bench, whole, 2, 2)
    assert not numerics.bad_gradients(bench, whole, 3, 2)


def test_a_learning_rate_too_high_ends_a_run_before_it_overwrites_anything(bench: Bench, whole: Reference) -> None:
    assert not numerics.exploding(bench, whole, 0.1)


def test_an_overflow_names_the_setting(bench: Bench) -> None:
    assert not numerics.overflow(bench, "bfloat16", 1e38)


def test_a_short_soak_leaks_nothing(bench: Bench) -> None:
    result = soak(bench, 40)
    assert result.files[0] == result.files[1] and result.threads[0] == result.threads[1]
    assert result.resident[1] < 1.05 * result.resident[0]


def test_the_command_finds_its_parts() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-m", "tests.faults", "--help"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--kills" in done.stdout, done.stderr
