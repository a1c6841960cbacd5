"""PickScore: which picture would people pick for the prompt?"""

from __future__ import annotations

from transformers import CLIPModel

from customized_grpo.rewards.alignment import AlignmentReward


class PickScore(AlignmentReward):
    """PickScore (arXiv 2305.01569): cosine of image and text features times the model's own scale.

    The logit of a human choice: of two pictures, a difference of 1 stands for odds of e to 1. The scale of the
    published model is 100, its scores lie around 20. The cache and long prompts are as in `AlignmentReward`.
    """

    kind = "pickscore"
    default_path = "yuvalkirstain/PickScore_v1"
    default_processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    architecture = CLIPModel
    types = ("clip",)

    @property
    def scale(self) -> float:
        """e to the model's logit_scale."""
        return float(self.model.logit_scale.exp())
