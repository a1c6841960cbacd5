"""A few cases of `python -m tests.faults`; what does not need a process of its own is tested in tests/trainer."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis.strategies import SearchStrategy

from . import any_damages, any_paths, any_rewards, campaigns, kills, numerics, places, stops
from .bench import Bench
from .generated import EXAMPLES
from .kills import Reference


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("faults")) as bench:
        yield bench


@pytest.fixture(scope="module")
def whole(bench: Bench) -> Reference:
    return kills.reference(bench, images=False)


@pytest.mark.parametrize(
    "site", [pytest.param("inside a metrics line", marks=pytest.mark.slow), "inside a file of tensors"]
)
def test_a_run_killed_inside_a_write_resumes_bit_for_bit(bench: Bench, whole: Reference, site: str) -> None:
    (trial,) = kills.at_sites(bench, whole, [site], random.Random())
    assert trial.killed and not trial.wrong


@pytest.mark.slow
def test_so_does_one_killed_at_any_moment(bench: Bench, whole: Reference) -> None:
    (trial,) = kills.at_moments(bench, whole, 1, random.Random())
    assert trial.killed and not trial.wrong


def test_a_stop_request_saves_and_a_second_ctrl_c_does_not_wait(bench: Bench, whole: Reference) -> None:
    assert not stops.politely(bench, whole, "sampling", 2, signal.SIGTERM).wrong
    assert not stops.in_vain(bench, whole, None, twice=True).wrong


@pytest.mark.slow  # tests/test_leaving.py has it within a process
def test_a_process_that_cannot_save_exits_all_the_same(bench: Bench, whole: Reference) -> None:
    request = stops.in_vain(bench, whole, 1.0, twice=False)
    assert not request.wrong and request.seconds < 10


def test_a_full_disk_is_one_line_and_costs_nothing(bench: Bench, whole: Reference) -> None:
    wrong = places.full_disk(bench, whole, 0.5)
    assert not (places.too_large_file(bench, whole) if wrong is None else wrong)


def test_nothing_is_left_of_what_a_full_disk_cannot_hold(bench: Bench, whole: Reference) -> None:
    assert not places.full_output(bench, whole)


@pytest.mark.parametrize(
    ("trials", "share"), [(any_paths.paths, 0.75), (any_rewards.rewards, 0.5), (any_damages.damages, 0.25)]
)
def test_any_path_reward_or_damage_is_answered_in_one_line_and_costs_nothing(
    bench: Bench,
    whole: Reference,
    trials: Callable[[], SearchStrategy[campaigns.Trial]],
    share: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # By a seed: the suite says the same each time, and `python -m tests.faults` looks further.
    found = campaigns.tried(trials(), int(share * EXAMPLES), bench, whole.folder / "run", number=0)
    with capsys.disabled():
        print(f"\n{trials.__name__}: {found}")
    assert not found.wrong and found.found


def test_two_processes_cannot_have_one_run(bench: Bench, whole: Reference) -> None:
    assert not places.in_use(bench, whole)


def test_a_damaged_checkpoint_is_skipped_with_a_warning(bench: Bench, whole: Reference) -> None:
    assert not places.damaged(bench, whole, 0, random.Random())


def test_an_overflow_names_the_setting(bench: Bench) -> None:
    assert not numerics.overflow(bench, "bfloat16", 1e38)
