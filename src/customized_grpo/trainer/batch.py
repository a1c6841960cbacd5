"""What an iteration hands from one stage to the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from customized_grpo.protocols import Conditions, Pair
from customized_grpo.trainer.credit import Credit
from customized_grpo.trainer.rollout import Trajectories
from customized_grpo.trainer.scoring import Scoring


@dataclass(frozen=True)
class Batch:
    """The images that this process samples in one iteration.

    `groups` are dataset indices of all processes' groups; `numbers` say which of the iteration's groups * G images are
    this process's. Their `pairs`, `keys` (pair key, number within the pair), `conditions` (one row each) and trained
    steps `trained` (images, S) are in that order. `stochastic` are the stochastic denoising steps.
    """

    iteration: int
    groups: list[int]
    numbers: list[int]
    pairs: list[Pair]
    keys: list[tuple[str, int]]
    conditions: list[Conditions]
    stochastic: range
    trained: Tensor


@dataclass(frozen=True)
class Rollouts:
    """The sampled images of a batch: trajectories to replay, `images` (B, 3, H, W) in [0, 1], scores under way.

    The trajectories are in the order of sampling; `order` brings what is made of them into the batch's order, in which
    `images` are.
    """

    batch: Batch
    trajectories: list[Trajectories]
    images: Tensor
    order: Tensor
    scoring: Scoring


@dataclass(frozen=True)
class Scores:
    """Scores of all processes' images, `values` (groups, G) by reward name; NaN where missing."""

    batch: Batch
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Advantages:
    """Advantages of all images by role (`credit`), and `trained` (images, S) of this process's trained steps.

    `trained` is (images, S, 2) with gradient surgery, which needs the roles apart; `mean` (images,) is what each image
    contributes on average. `valid` (images,) says which of this process's images count.
    """

    credit: Credit
    trained: Tensor
    mean: Tensor
    valid: Tensor
    metrics: dict[str, float]
