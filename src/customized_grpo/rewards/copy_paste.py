"""A guard against copy-pasting: is the picture's background the reference's own?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward
from customized_grpo.rewards.cache import FeatureCache, PairKey, pair_keys
from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.pixels import to_tensor

_SIDE = 64  # pixels: pictures and references of any size and shape are compared at this one
_MARGIN = _SIDE // 16  # the subject's mask is grown by this much: its outline and shadow are no background
#: Standard deviation, of colours 0..1, up to which a background is flat: an 8-bit step is 0.004, what resizing
#: leaves of a plain colour 1e-7.
_FLAT = 1e-4


class CopyPaste(BuiltinReward):
    """Correlation, times 100, of a picture with its reference outside the subject: 100 where it is pasted whole.

    Pearson's, over the pixels outside the reference's mask and its margin (all pixels where a reference
    has no mask), of the three channels centred one by one and then taken together; so neither brightness nor
    contrast nor a cast of colour hides a copy. Of several references the largest counts. High is bad: it
    is there to be watched, not trained on. The references of at most `cache_size` pairs are kept, 64 KiB each.
    """

    kind: ClassVar[str] = "copy-paste"
    needs: ClassVar[tuple[Need, ...]] = ("reference",)

    def __init__(
        self, *, name: str = "copy-paste", device: torch.device | str | None = None, cache_size: int = 1024
    ) -> None:
        self.name = name
        self._device = device_of(device, f"reward {name!r}: device")
        self._cache: FeatureCache[PairKey] = FeatureCache(cache_size)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,), -100 to 100, of pictures (B, 3, H, W) in [0, 1].

        A reference counts 0 where it leaves no background, or where its or the picture's is flat. Raises
        RewardError for a pair without references.
        """
        keys = pair_keys(pairs)
        by_key = dict(zip(keys, pairs, strict=True))
        references = self._cache.get(keys, lambda key: self._references(by_key[key]))
        counts = torch.tensor([len(references[key]) for key in keys], device=self._device)
        pictures = _resized(images.to(self._device)).repeat_interleave(counts, dim=0)
        shown = torch.cat([references[key] for key in keys])
        scores = 100 * _correlation(pictures, shown[:, :3], shown[:, 3:])
        return torch.stack([one.max() for one in torch.split(scores, counts.tolist())])

    def _references(self, pair: Pair) -> Tensor:
        """Colours and, 1 or 0, background of a pair's references, float32 (references, 4, 64, 64)."""
        if not pair.references:
            raise RewardError(f"pair {pair.key!r} has no reference to compare with")
        colours = [_resized(to_tensor(one.convert("RGB"))[None].to(self._device)) for one in pair.references]
        backgrounds = [self._background(mask) for mask in pair.masks]
        return torch.cat([torch.cat(colours), torch.cat(backgrounds)], dim=1)

    def _background(self, mask: Image.Image | None) -> Tensor:
        """1 outside the mask and its margin, else 0, float32 (1, 1, 64, 64)."""
        if mask is None:
            return torch.ones(1, 1, _SIDE, _SIDE, device=self._device)
        subject = torch.from_numpy(np.array(mask.convert("L")) > 127).float()[None, None]
        touched = (_resized(subject.to(self._device)) > 0).float()
        return 1 - functional.max_pool2d(touched, 2 * _MARGIN + 1, stride=1, padding=_MARGIN)


def _resized(images: Tensor) -> Tensor:
    """Pictures (B, C, H, W) as float32 (B, C, 64, 64), whatever their shape."""
    return functional.interpolate(images.float(), size=(_SIDE, _SIDE), mode="bilinear", antialias=True)


def _correlation(pictures: Tensor, references: Tensor, background: Tensor) -> Tensor:
    """Pearson's (B,) of pictures and references (B, 3, h, w) over the background (B, 1, h, w); 0 where flat."""
    size = background.sum((2, 3), keepdim=True).clamp(min=1)

    def centred(colours: Tensor) -> Tensor:
        mean = (colours * background).sum((2, 3), keepdim=True) / size
        return ((colours - mean) * background).flatten(1)

    one, other = centred(pictures), centred(references)
    # Not norm(), whose rounding is tenfold that of sum().
    lengths = one.square().sum(1).sqrt(), other.square().sum(1).sqrt()
    # A flat background has the length of its rounding errors; so would their correlation be.
    flat = _FLAT * (3 * size.flatten()).sqrt()
    told = (lengths[0] > flat) & (lengths[1] > flat)
    cosine = (one * other).sum(1) / (lengths[0] * lengths[1])
    return torch.where(told, cosine, 0.0).clamp(-1, 1)
