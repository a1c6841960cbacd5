"""Identity by DINO: is the subject of the picture that of the reference?"""

from __future__ import annotations

from torch import Tensor
from transformers import AutoModel

from customized_grpo.rewards.similarity import SimilarityReward

#: Architectures whose first token is a class token.
MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
#: Weights that tokens do not depend on and some checkpoints leave out.
UNUSED = frozenset({"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"})


class Dino(SimilarityReward):
    """Cosine of class tokens, times 100, of a picture and its reference (DreamBooth's DINO score).

    DINO, DINOv2 or DINOv3; -100 to 100, 100 for the reference itself. Masks, segmentation, several references and
    the cache are as in `SimilarityReward`.
    """

    kind = "dino"
    default_path = "facebook/dinov2-base"
    architecture = AutoModel
    types = MODEL_TYPES
    unused = UNUSED

    def _encode(self, inputs: dict[str, Tensor]) -> Tensor:
        tokens: Tensor = self.model(**inputs).last_hidden_state[:, 0]
        return tokens
