"""Identity by DINO's patches: is every part of the reference's subject somewhere in the picture?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel

from customized_grpo.rewards.dino import MODEL_TYPES, UNUSED
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.similarity import SimilarityReward


class DinoPatches(SimilarityReward):
    """Mean cosine, times 100, of the patches of the reference's subject, each to its best patch of the picture.

    DINO, DINOv2 or DINOv3; -100 to 100, 100 where every patch is found again. Only patches inside the reference's
    mask count, each by the share of it that the mask covers, and the reference is cut out before it is encoded: its
    background does not enter the score, so that copying it gains nothing. With `segment_pictures` only patches of
    the picture's subject can be the best. Masks, segmentation, several references and the cache are as in
    `SimilarityReward`, but for its size: patches of 512 pairs, 0.8 MB a reference of 256 patches of DINOv2-base.
    """

    kind = "dino-patches"
    default_path = "facebook/dinov2-base"
    architecture = AutoModel
    types = MODEL_TYPES
    unused = UNUSED
    default_cache_size = 512

    def _encode(self, inputs: dict[str, Tensor]) -> Tensor:
        first = 1 + getattr(self.model.config, "num_register_tokens", 0)
        tokens: Tensor = self.model(**inputs).last_hidden_state[:, first:]
        return tokens

    def _marked(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Patches (B, P, width + 1): last comes the share of each, 0 to 1, that the subject covers."""
        if mask is None:
            return functional.pad(features, (0, 1), value=1.0)
        side: Any = self.model.config.patch_size
        placed = self.frame.placed(mask)
        return torch.cat([features, functional.avg_pool2d(placed, side).flatten(1)[..., None]], dim=-1)

    def _joined(self, references: Sequence[Tensor]) -> Tensor:
        """(references, P, width + 1): the patches that a subject covers at all, padded with some that count 0."""
        subjects = [patches[patches[:, -1] > 0] for patches in references]
        if any(len(patches) == 0 for patches in subjects):
            raise RewardError(
                f"reward {self.name!r}: a reference's subject lies outside the middle that its model looks at; "
                "crop the reference to its subject"
            )
        return pad_sequence(subjects, batch_first=True)

    def _similarity(self, references: Tensor, picture: Tensor) -> Tensor:
        cosines = references[..., :-1] @ picture[:, :-1].T
        # At least half a patch, or what comes nearest to that where the subject is small.
        inside = picture[:, -1] >= picture[:, -1].max().clamp(max=0.5)
        best = cosines[..., inside].amax(-1)
        shares = references[..., -1]
        return ((best * shares).sum(1) / shares.sum(1)).mean()
