"""What an iteration drew, group by group, for whoever looks on."""

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
    """The groups of one process: its pairs, and all that was drawn and found out of them.

    `pictures` (groups, G, 3, H, W) in [0, 1] and `scores` (name -> (groups, G)) on the CPU; `credit` as
    `assign_credit` made it; `learned` (groups, G) is what the policy learnt from: the mean of the advantages
    of an image's trained steps. Of the `guards` among the scores, high is bad.
    """

    pairs: Sequence[Pair]
    pictures: Tensor
    scores: Mapping[str, Tensor]
    credit: Credit
    learned: Tensor
    guards: frozenset[str] = frozenset()

    @staticmethod
    def of(
        shown: Mapping[int, Pair],
        pictures: Tensor,
        scores: Mapping[str, Tensor],
        credit: Credit,
        learned: Tensor,
        guards: frozenset[str] = frozenset(),
    ) -> Groups:
        """The groups `shown`, by their numbers: `pictures` (shown * G, ...) is theirs, the rest that of all groups."""
        rows = list(shown)
        images = torch.arange(learned.numel()).view_as(learned)[rows]
        return Groups(
            list(shown.values()),
            pictures.cpu().view(*images.shape, *pictures.shape[1:]),
            {name: values[rows] for name, values in scores.items()},
            credit.of(images),
            learned[rows],
            guards,
        )


def group_diversity(pictures: Tensor, group_size: int) -> float:
    """How much the pictures of a group differ: 0 where all are the same, at most 1.

    The root mean square difference of two pictures' values, averaged over all twos of a group, then over
    groups. `pictures` is (groups * G, 3, H, W) in [0, 1]. A group of one picture has 0, and so have no groups.
    """
    if group_size < 2 or not len(pictures):
        return 0.0
    values = pictures.reshape(len(pictures) // group_size, group_size, -1)
    # Not by matrix products, which lose the small differences of pictures that are nearly the same.
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    twos = group_size * (group_size - 1)
    mean = float((distances.sum((1, 2)) / twos).mean())
    return mean / math.sqrt(values.shape[-1])
