"""The evaluation of held-out pairs when scorers have no answer."""

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


class Numbers:
    """Scores an image by its number, if it answers for that number."""

    def __init__(self, name: str, answers: Callable[[int], bool] = lambda i: True) -> None:
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


def evaluated(policy: Policy, folder: Path, *scorers: Numbers) -> dict[str, list[float]]:
    return evaluate(policy, open_dataset(CONFIG.data), scorers, CONFIG, folder, batch_size=2).scores


def test_missing_scores_are_stored_as_missing(policy: Policy, tmp_path: Path) -> None:
    scores = evaluated(policy, tmp_path, Numbers("some", lambda i: i != 1), Numbers("all"))
    assert scores["all"] == [0, 1, 2]
    assert scores["some"][::2] == [0, 2] and math.isnan(scores["some"][1])
    kept = read_evaluation(tmp_path, CONFIG)
    assert kept is not None and kept.mean("some") == 1


def test_an_evaluation_without_any_score_of_a_scorer_is_an_error(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it were stored, it would be the base of every later one."""
    with pytest.raises(RewardError, match=r"score by 'mute'"):
        evaluated(policy, tmp_path, Numbers("all"), Numbers("mute", lambda i: False))
    assert read_evaluation(tmp_path, CONFIG) is None
    monkeypatch.setattr(policy, "decode", lambda latents: torch.full((len(latents), 3, 16, 16), math.inf))
    with pytest.raises(RewardError, match=r"'a', 'b'.*policy\.dtype to float32"):
        evaluated(policy, tmp_path, Numbers("a"), Numbers("b"))
