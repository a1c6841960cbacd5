"""Scores while drawing goes on; what a missing score costs its group, and when a run stops for it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from running import draw, metrics_of, newest, run_training, same, tensors_of
from torch import Tensor

from customized_grpo.config import Config, MethodConfig, RewardConfig
from customized_grpo.data import open_dataset
from customized_grpo.protocols import Pair, Policy, Reward
from customized_grpo.rewards import RewardError, as_reward
from customized_grpo.rewards.base import event_loop
from customized_grpo.trainer.credit import assign_credit
from customized_grpo.trainer.rollout import Trajectories
from customized_grpo.trainer.scoring import BatchScores, Scoring, why_stop


class Redness:
    name = "redness"

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.seen: list[list[str]] = []

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        self.threads.add(threading.current_thread().name)
        self.seen.append([pair.key for pair in pairs])
        return images[:, 0].mean((1, 2))


class Broken:
    name = "broken"

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        raise ConnectionError("nobody answers")


@pytest.fixture
def pairs(make_config: Callable[..., Config]) -> list[Pair]:
    dataset = open_dataset(make_config().data)
    return [dataset[i // 3] for i in range(6)]


def scored(
    policy: Policy,
    batches: Iterable[Trajectories],
    rewards: Sequence[Reward],
    pairs: list[Pair],
    *,
    overlap: bool = False,
) -> tuple[Tensor, list[BatchScores]]:
    """Images and scores of batches as a trainer samples, decodes and submits them."""
    scoring, images = Scoring(rewards, overlap=overlap), []
    for batch in batches:
        images.append(policy.decode(batch.clean))
        scoring.submit(images[-1], [pairs[image] for image in batch.images.tolist()])
    return torch.cat(images), scoring.results()


def scores_of(parts: list[BatchScores], name: str) -> Tensor:
    return torch.cat([part.scores[name] for part in parts])


def test_overlapped_scores_are_the_same(policy: Policy, make_config: Callable[..., Config], pairs: list[Pair]) -> None:
    one, other = Redness(), Redness()
    batches, _ = draw(policy, make_config(), size=2)
    plain_images, plain = scored(policy, batches, [one], pairs)
    images, beside = scored(policy, batches, [other], pairs, overlap=True)
    assert one.threads == {"MainThread"} and "MainThread" not in other.threads
    assert one.seen == other.seen == [[pair.key for pair in pairs[i : i + 2]] for i in (0, 2, 4)]
    assert torch.equal(scores_of(plain, "redness"), scores_of(beside, "redness"))
    assert torch.equal(plain_images, images)
    assert scores_of(plain, "redness").shape == (6,)
    torch.testing.assert_close(plain_images[:, 0].mean((1, 2)), scores_of(plain, "redness"))


def test_rewards_run_on_this_process_s_accelerator_in_every_thread(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, int] = {}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    monkeypatch.setattr(
        torch.accelerator, "set_device_index", lambda index: chosen.update({threading.current_thread().name: index})
    )

    def mean(images: torch.Tensor) -> torch.Tensor:
        assert chosen[threading.current_thread().name] == 3
        return images.flatten(1).mean(1)

    async def later(images: torch.Tensor) -> torch.Tensor:
        return mean(images)

    event_loop.cache_clear()  # it may run already
    scoring = Scoring([as_reward(mean), as_reward(later)], overlap=True)
    scoring.submit(torch.rand(2, 3, 8, 8), pairs[:1] * 2)
    (scored,) = scoring.results()
    assert scored.failure is None and len(chosen) == 2


def test_sampling_does_not_run_ahead_of_the_scores(
    policy: Policy, make_config: Callable[..., Config], pairs: list[Pair]
) -> None:
    """At most two batches wait: the fourth is not sampled while the first has no score."""
    batches, _ = draw(policy, make_config(), size=1)
    requested_fourth = threading.Event()

    def watched() -> Iterator[Trajectories]:
        for number, batch in enumerate(batches, start=1):
            if number == 4:
                requested_fourth.set()
            yield batch

    class Slow(Redness):
        def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
            if not self.seen:
                assert not requested_fourth.wait(0.3)
            return super().__call__(images, pairs)

    _, parts = scored(policy, watched(), [Slow()], pairs, overlap=True)
    assert all(part.failure is None for part in parts) and requested_fourth.is_set()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_reward_that_dies_leaves_its_batches_without_scores(
    policy: Policy, make_config: Callable[..., Config], pairs: list[Pair], overlap: bool
) -> None:
    batches, _ = draw(policy, make_config(), size=2)
    _, parts = scored(policy, batches, [Redness(), Broken()], pairs, overlap=overlap)
    assert "reward 'broken' failed on pair" in str(parts[0].failure)
    assert bool(scores_of(parts, "broken").isnan().all())


REWARDS = [RewardConfig(kind="dino", role="identity", name="id"), RewardConfig(kind="clip", role="prompt", name="p")]


GUARD = RewardConfig(kind="copy-paste", role="guard", name="copies", limit=80.0)
SUM = MethodConfig(shaping="none", weighting="static", normalise="sum")


@pytest.mark.parametrize("method", [MethodConfig(), SUM], ids=["roles", "sum"])
@pytest.mark.parametrize(("name", "score"), [("p", math.nan), ("copies", 81.0), ("copies", math.nan)])
def test_a_group_without_an_image_is_the_group_of_the_others(method: MethodConfig, name: str, score: float) -> None:
    """Without the image that has no score, that a guard vetoes, or that its guard did not see."""
    torch.manual_seed(0)
    scores = {"id": torch.randn(1, 5), "p": torch.randn(1, 5), "copies": torch.tensor([[9.0, 80, 9, 9, 9]])}
    rest = {name: values[:, [0, 1, 3, 4]] for name, values in scores.items()}
    scores[name][0, 2] = score
    credit, record = assign_credit(scores, [*REWARDS, GUARD], method)
    expected, expected_record = assign_credit(rest, [*REWARDS, GUARD], method)
    at, others = credit.at(method, 6, torch.zeros(5, 1).long()), expected.at(method, 6, torch.zeros(4, 1).long())
    torch.testing.assert_close(at[[0, 1, 3, 4]], others)
    assert at[2] == 0
    assert credit.valid.tolist() == [[True, True, False, True, True]]
    vetoed = not math.isnan(score)
    assert bool(credit.scored.all()) == vetoed
    shares = (record["share/vetoed"], record["share/missing"])
    assert shares == pytest.approx((0.2, 0) if vetoed else (0, 0.2))
    # An image that dropped out counts among what each reward gave that saw it.
    for reward, values in scores.items():
        assert record[f"reward/{reward}/mean"] == pytest.approx(float(values.nanmean()))
    alike = [key for key in record if not key.startswith(("reward/", "share/missing", "share/vetoed"))]
    assert [record[key] for key in alike] == pytest.approx([expected_record[key] for key in alike])


def test_a_reward_that_weighs_nothing_drops_nobody() -> None:
    watched = RewardConfig(kind="clip", role="prompt", name="watched", weight=0.0)
    scores = {"id": torch.randn(2, 3), "p": torch.randn(2, 3), "watched": torch.full((2, 3), torch.nan)}
    scores["copies"] = torch.full((2, 3), 99.0)
    guard = GUARD.model_copy(update={"weight": 0.0})
    credit, record = assign_credit(scores, [*REWARDS, watched, guard], MethodConfig())
    assert bool(credit.valid.all()) and record["share/missing"] == 0 and "share/vetoed" not in record


def test_the_limit_counts_the_images_of_all_processes() -> None:
    def reason(missing: int, failure: RewardError | None, limit: float, others: list[float]) -> str | None:
        return why_stop(missing, 8, failure, limit, lambda counts: counts + torch.tensor(others))

    alone, whole, broken = [0.0] * 3, [0.0, 8.0, 0.0], [8.0, 8.0, 1.0]
    assert reason(2, None, 0.25, alone) is None
    assert reason(3, None, 0.25, alone) == "3 of 8 images have no score, more than train.max_missing=0.25 allows"
    assert reason(3, None, 0.25, whole) is None
    assert reason(0, None, 1.0, broken) == "a reward failed on another process"
    assert reason(8, RewardError("reward 'x' failed"), 1.0, alone) == "reward 'x' failed"


FLAKY = '''
import os, torch
def redness(images, pairs):
    """As the other file's, but at its fifth call it does what the environment says."""
    scores = 100 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))
    count = int(os.environ.get("CALLS", "0")) + 1
    os.environ["CALLS"] = str(count)
    if count == 5:
        if os.environ["FAULT"] == "raise":
            raise ConnectionError("nobody answers")
        scores[: int(os.environ["FAULT"])] = torch.nan
    return scores
'''


@pytest.fixture
def flaky(make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Nine images in batches of six, so that a call in two is the last of its iteration."""
    (tmp_path / "flaky.py").write_text(FLAKY, encoding="utf-8")
    monkeypatch.setenv("CALLS", "0")
    redness, light = make_config().rewards
    redness = redness.model_copy(update={"kind": f"{tmp_path / 'flaky.py'}:redness"})
    return make_config(rewards=[redness, light])


def weights(run: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors_of(run).items() if name.startswith("pytorch_lora")}


def test_a_run_learns_nothing_of_what_its_guard_vetoes(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """Two images of nine by their light; and where all are vetoed the weights stay, and nothing stops the run."""
    redness, light = make_config().rewards

    def train_below(limit: float) -> tuple[dict[str, float], dict[str, Tensor]]:
        run = tmp_path / str(limit)
        guard = light.model_copy(update={"name": "too light", "role": "guard", "limit": limit})
        run_training(make_config(iterations=1, updates=1, rewards=[redness, light, guard]), run)
        (record,) = metrics_of(run)
        return record, weights(run)

    free, all_vetoed = train_below(1e6), train_below(-1e6)
    assert free[0]["share/vetoed"] == 0 and all_vetoed[0]["share/vetoed"] == 1
    assert all_vetoed[0]["share/missing"] == 0 and all_vetoed[0]["gradient_norm"] == 0
    some = train_below(free[0]["prompt/mean"])  # the mean of what the guard sees, too
    assert 0 < some[0]["share/vetoed"] < 1 and some[0]["gradient_norm"] > 0
    assert any(not torch.equal(some[1][name], free[1][name]) for name in free[1])


@pytest.mark.parametrize(("fault", "reason"), [("2", "2 of 9 images have no score"), ("raise", "nobody answers")])
def test_a_run_that_stops_for_its_rewards_loses_nothing(
    flaky: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(RewardError, match=rf"{reason}.*in iteration 3; earlier ones are saved: --resume"):
        run_training(flaky, tmp_path / "run")
    assert newest(tmp_path / "run") == "000002"
    assert metrics_of(tmp_path / "run") == metrics_of(whole)[:2]
    run_training(flaky, tmp_path / "run")  # the fault is past
    assert same(weights(tmp_path / "run"), weights(whole))
