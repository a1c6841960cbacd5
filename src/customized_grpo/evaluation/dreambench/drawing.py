"""Pictures of a benchmark's cases by a policy, each a function of (seed, subject, prompt, index) alone.

One picture goes through the model at a time, so that not even rounding depends on what was drawn with it, on the number
of processes or on an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from customized_grpo.data.benchmark import Benchmark, Case
from customized_grpo.evaluation.dreambench.folder import EvaluationFolder, Records, checksum, sound
from customized_grpo.protocols import Policy
from customized_grpo.trainer.rollout import image_noise, sample_pictures
from customized_grpo.utils.pixels import to_image

Todo = list[tuple[Case, list[int]]]
"""Cases and the indices of the pictures that they lack."""


def undrawn(folder: EvaluationFolder, cases: Iterable[Case], images: int, records: Records) -> Todo:
    """What is still to be drawn: pictures that are missing, damaged, or not the ones that were scored."""

    def missing(case: Case, index: int) -> bool:
        path = folder.pictures.path(case, index)
        now = checksum(path)
        return now is None or records.altered(case, index, now) or not sound(path)

    lacking = ((case, [index for index in range(images) if missing(case, index)]) for case in cases)
    return [(case, indices) for case, indices in lacking if indices]


def draw(
    policy: Policy,
    benchmark: Benchmark,
    todo: Sequence[tuple[Case, Sequence[int]]],
    folder: EvaluationFolder,
    *,
    steps: int,
    seed: int,
    on_picture: Callable[[], None],
) -> None:
    """Draw and keep those pictures by deterministic sampling; equal noise for equal cases, whatever the policy."""
    sigmas = policy.sigmas(steps).to(policy.device)
    for case, indices in todo:
        pair = benchmark.shown(case)
        conditions = policy.encode(pair.prompt, pair.references)
        for index in indices:
            noise = image_noise(policy, 1, seed, "benchmark", case.key, index)
            (picture,) = sample_pictures(policy, conditions, noise, sigmas)
            folder.pictures.write(case, index, to_image(picture))
            on_picture()
