"""Images, scores and advantages of an iteration's groups, for callbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.protocols import Pair
from customized_grpo.trainer.credit import Credit


@dataclass(frozen=True)
class Groups:
    """Groups of one process.

    Attributes:
        pairs: The groups' pairs.
        pictures: Images (groups, G, 3, H, W) in [0, 1], on the CPU.
        scores: Scores (groups, G) by reward name.
        credit: Advantages per role.
        learned: Mean advantage of each image's trained steps, (groups, G).
        guards: Names of the scores of guards, for which high is bad.
    """

    pairs: Sequence[Pair]
    pictures: Tensor
    scores: Mapping[str, Tensor]
    credit: Credit
    learned: Tensor
    guards: frozenset[str] = frozenset()


def group_diversity(images: Tensor, group_size: int) -> float:
    """Return the root mean square difference of two images of a group, averaged over all twos and groups.

    Args:
        images: (groups * group_size, 3, H, W) in [0, 1].
        group_size: Images per group. Groups of one image have diversity 0, as do no groups.

    Returns:
        0, where all images are the same, to 1.
    """
    if group_size < 2 or not len(images):
        return 0.0
    values = images.reshape(len(images) // group_size, group_size, -1)
    # Not by matrix products, which lose the small differences of nearly equal images.
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    mean = float((distances.sum((1, 2)) / (group_size * (group_size - 1))).mean())
    return mean / math.sqrt(values.shape[-1])
