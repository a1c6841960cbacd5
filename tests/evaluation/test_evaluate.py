"""What an evaluation keeps where judges have no answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from embedded import embedded
from tiny import save_flux_kontext
from torch import Tensor

from customized_grpo.config import DataConfig, EvaluationConfig, PolicyConfig
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import evaluate, read_evaluation
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Pair, Policy
from customized_grpo.rewards import RewardError

CONFIG = embedded(EvaluationConfig, data=embedded(DataConfig, split="held-out", size=3, seed=1), steps=2, monitors=[])


class Judge:
    """Scores by the pairs' number, but those it does not answer for."""

    def __init__(self, name: str, answers: Callable[[int], bool]) -> None:
        self.name, self._answers, self._seen = name, answers, 0

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        numbers = range(self._seen, self._seen + len(images))
        self._seen += len(images)
        return torch.tensor([float(i) if self._answers(i) else math.nan for i in numbers])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = save_flux_kontext(tmp_path_factory.mktemp("pipeline"))
    config = embedded(PolicyConfig, path=str(folder), height=16, width=16, reference_sizes=[(16, 16)], device="cpu")
    return build_policy(config)


def evaluated(policy: Policy, folder: Path, *judges: Judge) -> dict[str, list[float]]:
    return evaluate(policy, open_dataset(CONFIG.data), judges, CONFIG, folder, batch_size=2).scores


def test_a_few_missing_scores_are_kept_as_missing(policy: Policy, tmp_path: Path) -> None:
    scores = evaluated(policy, tmp_path, Judge("some", lambda i: i != 1), Judge("all", lambda i: True))
    assert scores["all"] == [0, 1, 2]
    assert scores["some"][::2] == [0, 2] and math.isnan(scores["some"][1])
    kept = read_evaluation(tmp_path, CONFIG)
    assert kept is not None and kept.mean("some") == 1


def test_an_evaluation_that_a_judge_says_nothing_of_is_none(policy: Policy, tmp_path: Path) -> None:
    """Kept, it would stand for the base of every later one."""
    with pytest.raises(RewardError, match="none of 3 images of the evaluation has a score by 'mute'; see the"):
        evaluated(policy, tmp_path, Judge("all", lambda i: True), Judge("mute", lambda i: False))
    assert read_evaluation(tmp_path, CONFIG) is None


def test_pictures_that_are_no_numbers_are_told_of(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "decode", lambda latents: torch.full((len(latents), 3, 16, 16), math.inf))
    judges = [Judge(name, lambda i: True) for name in "ab"]
    with pytest.raises(RewardError, match=r"by 'a', 'b'; not finite are 3 of them: set policy\.dtype to float32"):
        evaluated(policy, tmp_path, *judges)
