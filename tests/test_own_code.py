"""A user's own code: what it changes is undone, its random numbers are seeded, its errors have a place, exits count."""

from __future__ import annotations

import asyncio
import builtins
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import customized_grpo as cg
from customized_grpo.cli import app
from customized_grpo.cli.app import DEBUG, one_line_errors
from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, as_reward, build_reward, score
from customized_grpo.utils.isolation import isolated
from customized_grpo.utils.named import own_place
from customized_grpo.utils.pixels import save_image, to_image

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PAIRS = [Pair(key, "a cat", (), ()) for key in "abc"]


def settings() -> list[Any]:
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        os.getcwd(),
        open,
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ]


def disturb(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(not torch.is_grad_enabled())
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("medium")
    os.chdir(folder)
    vars(builtins)["open"] = os.open
    for draw in (random.random, np.random.rand):
        draw()
    torch.manual_seed(7)


def test_whatever_a_reward_changes_is_undone(tmp_path: Path) -> None:
    before = settings()

    def reward(images: torch.Tensor) -> list[float]:
        disturb(tmp_path)
        return [1.0] * len(images)

    def failing(images: torch.Tensor) -> list[float]:
        disturb(tmp_path)
        del builtins.open
        raise KeyError("score")

    assert score([as_reward(reward)], IMAGES, PAIRS)["reward"].tolist() == [1.0] * 3
    assert settings() == before
    with pytest.raises(RewardError):
        score([as_reward(failing)], IMAGES, PAIRS)
    assert settings() == before
    with isolated("key"):
        disturb(tmp_path)
    assert settings() == before


def test_a_reward_that_changes_its_references_in_place_changes_no_others() -> None:
    pair = cg.datasets.world("train", size=1)[0]
    before = [image.tobytes() for image in (*pair.references, *pair.masks) if image is not None]

    def shrinks(images: torch.Tensor, references: Any, pairs: Any) -> list[float]:
        for photos in references:
            photos[0].thumbnail((8, 8))
        for one in pairs:
            one.masks[0].paste(0, (0, 0, 64, 64))
        return [float(len({id(one) for one in pairs}))] * len(images)

    scores = score([as_reward(shrinks)], torch.rand(2, 3, 64, 64), [pair, pair])
    assert scores["shrinks"].tolist() == [1, 1], "the same pair for both images"
    assert [image.tobytes() for image in (*pair.references, *pair.masks) if image is not None] == before


def test_whatever_an_asynchronous_reward_changes_is_undone_whenever_it_waits(tmp_path: Path) -> None:
    inside: list[bool] = []
    beside: list[bool] = []

    async def reward(images: torch.Tensor) -> list[float]:
        await asyncio.sleep(0)
        disturb(tmp_path)
        changed = settings()
        while not beside:
            await asyncio.sleep(0.01)
        inside.append(settings() == changed)
        await asyncio.gather(*(child() for _ in images))
        return [1.0] * len(images)

    async def child() -> None:
        await asyncio.sleep(0)
        torch.set_default_dtype(torch.float16)
        await asyncio.sleep(0.01)
        inside.append(torch.get_default_dtype() == torch.float16)

    def other(images: torch.Tensor) -> list[float]:
        until = time.monotonic() + 5
        while not (undone := settings()[:8] == before[:8]) and time.monotonic() < until:  # a step may be running
            time.sleep(0.002)
        beside.append(undone)
        return [2.0] * len(images)

    async def failing(images: torch.Tensor) -> list[float]:
        await asyncio.sleep(0)
        disturb(tmp_path)
        raise KeyError("score")

    with torch.no_grad():
        before = settings()
        score([as_reward(reward), as_reward(other, name="other")], IMAGES, PAIRS)
        assert beside == [True] and inside == [True] * 4 and settings() == before
        with pytest.raises(RewardError, match="KeyError"):
            score([as_reward(failing)], IMAGES, PAIRS)
        assert settings() == before


def test_random_numbers_of_an_asynchronous_reward_depend_on_the_seed_alone() -> None:
    async def one(wait: float) -> float:
        await asyncio.sleep(wait)
        return float(torch.rand(())) + random.random()  # noqa: S311

    def scores(seed: int, *waits: float) -> list[float]:
        async def reward(images: torch.Tensor) -> list[float]:
            first = await one(waits[0])
            return [first, *await asyncio.gather(*map(one, waits[1:]))]

        return score([as_reward(reward)], IMAGES, PAIRS, seed=[seed])["reward"].tolist()

    first = scores(0, 0, 0, 0.02)
    torch.rand(5)
    assert scores(0, 0.01, 0.02, 0) == first, "in whichever order its tasks end"
    assert len(set(first)) == 3 and scores(1, 0, 0, 0) != first


def test_a_reward_that_changes_its_images_in_place_changes_no_others() -> None:
    def darkens(images: torch.Tensor) -> torch.Tensor:
        return images.mul_(0).flatten(1).mean(1)

    def mean(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(1)

    images = IMAGES.clone()
    scores = score([as_reward(darkens), as_reward(mean)], images, PAIRS)
    assert images.equal(IMAGES) and scores["mean"].equal(IMAGES.flatten(1).mean(1)) and not scores["darkens"].any()


def test_streams_signal_handlers_and_a_recursion_limit_that_a_reward_takes_away_are_put_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def reward(images: torch.Tensor) -> list[float]:
        sys.setrecursionlimit(300)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stderr.close()
        sys.stdout = None  # type: ignore[assignment]
        return [1.0] * len(images)

    limit, handler = sys.getrecursionlimit(), signal.getsignal(signal.SIGTERM)
    with (tmp_path / "out").open("w") as out, (tmp_path / "error").open("w") as error:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        score([as_reward(reward)], IMAGES, PAIRS)
        assert sys.stdout is out and not sys.stderr.closed and sys.getrecursionlimit() == limit
        assert signal.getsignal(signal.SIGTERM) == handler
        sys.stderr.close()


def test_an_error_that_cannot_be_shown_is_named_by_its_type() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def reward(images: torch.Tensor) -> None:
        raise Unprintable

    with pytest.raises(
        RewardError, match=r"reward 'reward' failed on pairs 'a', 'b', 'c': Unprintable, at .*in reward"
    ):
        score([as_reward(reward)], IMAGES, PAIRS)


@pytest.mark.parametrize("made", [torch.rand(3, device="meta"), torch.ones(3).to_sparse()])
def test_scores_that_cannot_be_read_are_an_error(made: torch.Tensor) -> None:
    with pytest.raises(RewardError, match=r"^reward 'odd' failed on pairs 'a', 'b', 'c': NotImplementedError"):
        score([as_reward(lambda images: made, name="odd")], IMAGES, PAIRS)


def test_what_a_module_changes_on_import_is_undone(tmp_path: Path) -> None:
    before = settings()
    file = tmp_path / "own.py"
    file.write_text("import torch\ntorch.set_default_dtype(torch.float64)\ntorch.manual_seed(3)\ndef f(images): pass\n")
    build_reward(RewardConfig(kind=f"{file}:f", role="prompt"), "cpu")
    assert settings() == before


def noisy(images: torch.Tensor) -> list[float]:
    return (torch.rand(len(images)) + np.random.rand() + random.random()).tolist()  # noqa: S311


def test_random_numbers_of_a_reward_depend_on_the_seed_alone() -> None:
    def scores(*seed: int, **options: Any) -> list[float]:
        return score([as_reward(noisy)], IMAGES, PAIRS, seed=seed, **options)["noisy"].tolist()

    first = scores(0, 1)
    torch.rand(5)
    assert scores(0, 1) == first and len(set(first)) == 3
    assert scores(0, 2) != first and scores(1, 1) != first
    split = scores(0, 1, batch_size=1)
    assert len(set(split)) == 3, "another for each call"


BUG = """
def inner(row):
    return row["score"]

def f(images):
    return [inner({}) for _ in images]

async def later(images):
    return [inner({}) for _ in images]

class Broken:
    def __init__(self):
        inner({})
"""


@pytest.mark.parametrize("name", ["f", "later", "Broken"])
def test_an_error_in_own_code_has_its_file_and_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bug.py").write_text(BUG)
    with pytest.raises(RewardError, match=r"KeyError: 'score', at bug\.py:3 in inner") as raised:
        score([build_reward(RewardConfig(kind=f"bug.py:{name}", role="prompt"), "cpu")], IMAGES, PAIRS)
    assert "\n" not in str(raised.value)


def test_code_of_libraries_and_of_this_package_is_not_ones_own() -> None:
    with pytest.raises(ValueError, match="B pairs") as raised:
        score([], IMAGES, [])
    raised.value.__traceback__ = raised.value.__traceback__.tb_next  # type: ignore[union-attr] # without this test
    assert own_place(raised.value) is None


IN_TASKS = """
import asyncio
async def part():
    raise {}
async def f(images):
    await asyncio.gather(part(), part())
"""


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)\n",
        "import sys\ndef f(images):\n    sys.exit(0)\n",
        "import sys\nasync def f(images):\n    sys.exit(0)\n",
        "def f(images):\n    raise SystemExit\n",
        "import sys\nclass f:\n    def __init__(self):\n        sys.exit(0)\n",
        IN_TASKS.format("SystemExit(0)"),
        IN_TASKS.format("KeyboardInterrupt"),
    ],
)
def test_an_exit_in_a_reward_is_an_error(code: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(code)
    for _ in range(2):  # the loop of asynchronous rewards still runs
        with pytest.raises(RewardError, match=r"reward .*(SystemExit|KeyboardInterrupt).*own\.py:\d"):
            score([build_reward(RewardConfig(kind=f"{tmp_path / 'own.py'}:f", role="prompt"), "cpu")], IMAGES, PAIRS)


@pytest.mark.parametrize("code", [0, None, 3])
def test_an_exit_anywhere_else_in_a_command_is_no_success(code: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        raise SystemExit(code)
    assert ended.value.exit_code == 2
    assert f"error: the command was ended by a call of exit, with code {code}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "shown"),
    [([], {}, False), (["--debug"], {}, True), ([], {DEBUG: "1"}, True), ([], {DEBUG: "0"}, False)],
)
def test_the_traceback_is_shown_on_request(
    arguments: list[str], environment: dict[str, str], shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bug.py").write_text(BUG)
    command = ["score", "--reward", "bug.py:Broken", "--image", str(photo(tmp_path)), "--prompt", "a", *arguments]
    done = CliRunner().invoke(app, command, env=environment)
    assert done.exit_code == 2 and "error: reward 'bug.py:Broken': " in done.stderr, done.output
    assert ("Traceback" in done.stderr and 'return row["score"]' in done.stderr) == shown
    assert len(done.stderr.splitlines()) == 1 or shown


def photo(folder: Path) -> Path:
    save_image(to_image(IMAGES[0]), folder / "photo.png")
    return folder / "photo.png"


def test_sys_exit_at_import_of_an_own_policy_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import sys\nsys.exit(0)\n")
    arguments = ["--reference", str(photo(tmp_path)), "--prompt", "a", "--out", str(tmp_path / "x.png")]
    done = CliRunner().invoke(app, ["generate", *arguments, "--set", f"policy.kind={tmp_path / 'own.py'}:P"])
    assert done.exit_code == 2 and "SystemExit" in done.stderr
