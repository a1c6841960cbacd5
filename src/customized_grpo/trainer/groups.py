"""Images, scores and advantages of an iteration's groups, for callbacks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.protocols import Pair
from customized_grpo.trainer.credit import Credit


@dataclass(frozen=True)
class Groups:
    """Groups of one process: their `pairs`, `images` (G, 3, H, W) each in [0, 1] on the CPU, and results.

    `scores` are (groups, G) by reward name; `guards` are those for which high is bad. `credit` has the advantages per
    role, `learned` (groups, G) the mean advantage of each image's trained steps.
    """

    pairs: Sequence[Pair]
    images: Sequence[Tensor]
    scores: Mapping[str, Tensor]
    credit: Credit
    learned: Tensor
    guards: frozenset[str] = frozenset()


def group_diversity(groups: Sequence[Tensor]) -> float:
    """Return the root mean square difference of two images of a group, averaged over twos and groups: 0 to 1."""
    diversity = 0.0
    for shape in dict.fromkeys(group.shape for group in groups):
        values = torch.stack([group.flatten(1) for group in groups if group.shape == shape])
        size, numbers = values.shape[1:]
        if size < 2:
            continue
        # Not by matrix products, which lose the small differences of nearly equal images.
        distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
        mean = float((distances.sum((1, 2)) / (size * (size - 1))).mean())
        diversity += mean / math.sqrt(numbers) * (len(values) / len(groups))
    return diversity
