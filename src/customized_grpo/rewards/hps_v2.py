"""HPS v2: which picture would people prefer for the prompt?"""

from __future__ import annotations

from transformers import CLIPModel

from customized_grpo.rewards.alignment import AlignmentReward
from customized_grpo.rewards.errors import RewardError

#: Where the authors publish a pickle alone.
_ORIGINAL = "xswu/HPSv2"


class HpsV2(AlignmentReward):
    """Human Preference Score v2 or v2.1 (arXiv 2306.09341): cosine of image and text features, times 100.

    -100 to 100, in practice 20 to 35. The authors publish open_clip pickles, which are never loaded: `path` is a
    conversion to transformers' CLIPModel (ViT-H/14) in safetensors. The cache and long prompts are as in
    `AlignmentReward`.
    """

    kind = "hps-v2"
    architecture = CLIPModel
    types = ("clip",)

    def _where(self, path: str | None) -> str:
        if path is None or path == _ORIGINAL:
            raise RewardError(
                f"reward {self.name!r}: {_ORIGINAL} holds pickles, which are never loaded; give as path a folder or "
                "hub id of its conversion to transformers' CLIPModel, with model.safetensors"
            )
        return path
