"""Scores of pictures in a folder, whoever drew them, case by case."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.data import pictures
from customized_grpo.data.benchmark import Benchmark, Case
from customized_grpo.evaluation.dreambench.folder import EvaluationFolder, PictureFolder, Record, Records, checksum
from customized_grpo.evaluation.dreambench.protocol import EvaluationProtocol, Metric
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import build_reward, score
from customized_grpo.utils.pixels import to_tensor


@dataclass(frozen=True)
class Measures:
    """What is measured: the protocol's metrics but those left out (by name, why), and diversity where it can be."""

    protocol: EvaluationProtocol
    metrics: dict[str, Metric]
    left_out: dict[str, str]

    @staticmethod
    def of(protocol: EvaluationProtocol, benchmark: Benchmark) -> Measures:
        """Raises ModelError where a metric's path is no model."""
        reasons = {metric.name: metric.why_not(benchmark.masked) for metric in protocol.metrics}
        left_out = {name: reason for name, reason in reasons.items() if reason is not None}
        kept = {metric.name: metric for metric in protocol.metrics if metric.name not in left_out}
        if protocol.diversity is not None:
            if protocol.images < 2:
                left_out[protocol.diversity_name] = "one picture of a case has nothing to differ from"
            elif protocol.diversity not in kept:
                left_out[protocol.diversity_name] = f"{protocol.diversity} is left out"
        return Measures(protocol, kept, left_out)

    @property
    def names(self) -> list[str]:
        """Of all scores that a case has in the end."""
        name = self.protocol.diversity_name
        diverse = self.protocol.diversity is not None and name not in self.left_out
        return [*self.metrics, *([name] if diverse else [])]

    def settings(self) -> dict[str, object]:
        """By name, all that a score depends on beside the picture."""
        told: dict[str, object] = {name: metric.model_dump(mode="json") for name, metric in self.metrics.items()}
        name = self.protocol.diversity_name
        return {**told, name: told[self.protocol.diversity or ""]} if name in self.names else told


def checksums(folder: PictureFolder, case: Case, images: int) -> list[int | None]:
    return [checksum(folder.path(case, index)) for index in range(images)]


def unscored(
    source: PictureFolder, cases: Iterable[Case], measures: Measures, records: Records
) -> list[tuple[Case, list[str]]]:
    """The cases that lack scores of their pictures as they are now, and the names of those."""
    lacking = []
    for case in cases:
        has = records.scores(case, checksums(source, case, measures.protocol.images))
        if missing := [name for name in measures.names if name not in has]:
            lacking.append((case, missing))
    return lacking


def score_cases(
    todo: Sequence[tuple[Case, Sequence[str]]],
    benchmark: Benchmark,
    source: PictureFolder,
    measures: Measures,
    device: torch.device,
    folder: EvaluationFolder,
    on_case: Callable[[], None],
) -> None:
    """Score those cases by those metrics, and keep each case's scores as soon as they are there.

    A case's pictures are always scored together, so that its scores do not depend on what else is scored. Raises
    RewardError where a judge cannot be loaded or fails, DataError where a picture cannot be read.
    """
    wanted = {name for _, names in todo for name in names}
    diversity = measures.protocol.diversity_name
    judges = {
        name: build_reward(metric.reward(), device)
        for name, metric in measures.metrics.items()
        if name in wanted or (name == measures.protocol.diversity and diversity in wanted)
    }
    for case, names in todo:
        paths = [source.path(case, index) for index in range(measures.protocol.images)]
        seen = [checksum(path) for path in paths]
        shown = [pictures.load(path) for path in paths]
        scores = {
            name: measure(judges[name], measures.metrics[name], shown, benchmark, case)
            for name in names
            if name in measures.metrics
        }
        if diversity in names:
            scores[diversity] = differences(judges[measures.protocol.diversity or ""], shown, case)
        folder.add(Record(case.key, [one for one in seen if one is not None], scores))
        on_case()


def measure(
    judge: Reward, metric: Metric, shown: Sequence[Image.Image], benchmark: Benchmark, case: Case
) -> list[float]:
    """One metric's score of each picture of a case; of several subjects the mean of what each of them scores."""
    of_photos = metric.role == "identity" and metric.against == "photos"
    pairs = benchmark.views(case) if of_photos else [benchmark.shown(case)]
    by_subject = torch.stack([_scores(judge, shown, [pair] * len(shown)) for pair in pairs])
    found: list[float] = by_subject.mean(0).tolist()
    return found


def differences(judge: Reward, shown: Sequence[Image.Image], case: Case) -> list[float]:
    """How unlike the others of its group each picture is: 100 less its mean similarity to them.

    Their mean over the group is 100 less the mean over all pairs of its pictures.
    """
    pairs = []
    for i in range(len(shown)):
        others = tuple(picture for j, picture in enumerate(shown) if j != i)
        pairs.append(Pair(f"{case.key}/without-{i}", case.text, others, (None,) * len(others)))
    return [100 - value for value in _scores(judge, shown, pairs).tolist()]


def _scores(judge: Reward, shown: Sequence[Image.Image], pairs: Sequence[Pair]) -> Tensor:
    """(B,) of pictures of any sizes, those of one size together."""
    scores = torch.full((len(shown),), math.nan)
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, picture in enumerate(shown):
        by_size.setdefault(picture.size, []).append(i)
    for rows in by_size.values():
        images = torch.stack([to_tensor(shown[i]) for i in rows])
        found: Mapping[str, Tensor] = score([judge], images, [pairs[i] for i in rows])
        scores[rows] = next(iter(found.values()))
    return scores
