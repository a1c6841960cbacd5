"""Prompt following by SigLIP 2: does the picture show what the prompt says?"""

from __future__ import annotations

from torch import Tensor
from transformers import AutoModel

from customized_grpo.rewards.alignment import AlignmentReward
from customized_grpo.rewards.siglip_image import MODEL_TYPES


class Siglip(AlignmentReward):
    """Cosine of SigLIP's or SigLIP 2's image and text features, times 100 (arXiv 2502.14786).

    -100 to 100, and lower than CLIP's for the same picture and prompt: SigLIP was trained with a bias. The bias and
    the sigmoid are left out, as they would flatten the differences inside a group. The cache and long prompts are
    as in `AlignmentReward`.
    """

    kind = "siglip"
    default_path = "google/siglip2-base-patch16-224"
    architecture = AutoModel
    types = MODEL_TYPES

    def _tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        # Trained on lower case, and on padding that is seen: no attention mask.
        return {"input_ids": super()._tokens([prompt.lower() for prompt in prompts])["input_ids"]}
