"""Identity by SigLIP: are the picture and its reference the same thing to SigLIP?"""

from __future__ import annotations

from torch import Tensor
from transformers import AutoModel

from customized_grpo.rewards.similarity import SimilarityReward

#: SigLIP 2's checkpoints of a fixed resolution are of type siglip, those of any shape (NaFlex) of type siglip2.
MODEL_TYPES = ("siglip", "siglip2")


class SiglipImage(SimilarityReward):
    """Cosine of SigLIP's or SigLIP 2's image features, times 100, of a picture and its reference.

    -100 to 100. Masks, segmentation, several references and the cache are as in `SimilarityReward`.
    """

    kind = "siglip-image"
    default_path = "google/siglip2-base-patch16-224"
    architecture = AutoModel
    types = MODEL_TYPES

    def _encode(self, inputs: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.model.get_image_features(**inputs).pooler_output
        return features
