"""Prompt following by CLIP: does the picture show what the prompt says?"""

from __future__ import annotations

from transformers import CLIPModel

from customized_grpo.rewards.alignment import AlignmentReward


class Clip(AlignmentReward):
    """Cosine of CLIP's image and text features, times 100 (CLIPScore without its factor 2.5, arXiv
    2104.08718).

    -100 to 100, 20 to 35 for photos and their prompts. The cache and long prompts are as in `AlignmentReward`.
    """

    kind = "clip"
    default_path = "openai/clip-vit-large-patch14"
    architecture = CLIPModel
    types = ("clip",)
