"""Identity by CLIP: are the picture and its reference the same thing to CLIP?"""

from __future__ import annotations

from torch import Tensor
from transformers import CLIPModel

from customized_grpo.rewards.similarity import SimilarityReward


class ClipImage(SimilarityReward):
    """Cosine of CLIP's image features, times 100, of a picture and its reference (DreamBooth's CLIP-I score).

    -100 to 100, in practice 50 to 100: CLIP sees the kind of thing more than the very thing. Masks, segmentation,
    several references and the cache are as in `SimilarityReward`.
    """

    kind = "clip-image"
    default_path = "openai/clip-vit-large-patch14"
    architecture = CLIPModel
    types = ("clip",)

    def _encode(self, inputs: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.model.get_image_features(**inputs).pooler_output
        return features
