"""Identity by DINO: is the subject of the picture that of the reference?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from customized_grpo.protocols import Pair
from customized_grpo.rewards.cache import FeatureCache, PairKey, pair_keys
from customized_grpo.rewards.checkpoint import load_judge
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.frame import to_tensor

#: Architectures whose first token is a class token.
MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
#: Weights that a class token does not depend on and some checkpoints leave out.
_UNUSED = frozenset({"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"})


class DinoReward:
    """Cosine of class tokens, times 100, of a picture and its reference (DreamBooth's DINO score).

    The reference's subject is cut out by its mask, the rest filled with the processor's mean
    colour, as in the paper; where a reference has no mask, or `segmented` is false, the whole
    reference counts. Of several references the mean cosine counts. The features of a pair's
    references are computed once and kept, those of at most `cache_size` pairs. Weights stored in
    any precision work in float32; no gradient.
    """

    def __init__(
        self,
        path: str = "facebook/dinov2-base",
        *,
        name: str = "dino",
        device: torch.device | str = "cpu",
        segmented: bool = True,
        batch_size: int = 64,
        cache_size: int = 4096,
        revision: str = "main",
    ) -> None:
        self.name = name
        self.segmented = segmented
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._cache: FeatureCache[PairKey] = FeatureCache(cache_size)
        model, self.frame = load_judge(AutoModel, MODEL_TYPES, path, revision, name, _UNUSED)
        self.model = model.to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,), -100 to 100, of pictures (B, 3, H, W) in [0, 1]."""
        keys = pair_keys(pairs)
        by_key = dict(zip(keys, pairs, strict=True))
        references = self._cache.get(keys, lambda missing: self._reference_features([by_key[key] for key in missing]))
        pictures = self._features(self.frame(images.to(self._device)))
        return torch.stack(
            [100 * (references[key] @ picture).mean() for key, picture in zip(keys, pictures, strict=True)]
        )

    def _reference_features(self, pairs: list[Pair]) -> list[Tensor]:
        """Unit vectors (references, width) of each pair, all in one batch."""
        for pair in pairs:
            if not pair.references:
                raise RewardError(f"pair {pair.key!r} has no reference to compare with")
        pixels = [
            self.frame(self._shown(reference, mask, pair.key)[None].to(self._device))
            for pair in pairs
            for reference, mask in zip(pair.references, pair.masks, strict=True)
        ]
        counts = [len(pair.references) for pair in pairs]
        if len({one.shape for one in pixels}) > 1:  # a processor that does not crop
            return list(torch.split(torch.cat([self._features(one) for one in pixels]), counts))
        return list(torch.split(self._features(torch.cat(pixels)), counts))

    def _shown(self, reference: Image.Image, mask: Image.Image | None, key: str) -> Tensor:
        picture = to_tensor(reference.convert("RGB"))
        if mask is None or not self.segmented:
            return picture
        if mask.size != reference.size:
            raise RewardError(
                f"pair {key!r}: a mask of {mask.size} for a reference of {reference.size}; make them equal"
            )
        weight = to_tensor(mask.convert("L"))
        return weight * picture + (1 - weight) * torch.tensor(self.frame.mean).view(3, 1, 1)

    def _features(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, width) of pixel values (B, 3, h, w)."""
        tokens = [
            self.model(pixel_values=part).last_hidden_state[:, 0] for part in torch.split(pixels, self._batch_size)
        ]
        return functional.normalize(torch.cat(tokens).float(), dim=-1)
