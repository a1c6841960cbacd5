"""Guard against copy-pasting: the share of the background that is the reference's own."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward
from customized_grpo.rewards.cache import PairCache
from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.pixels import to_tensor

_SIDE = 64  # pixels, to which images and references are resized
_MARGIN = _SIDE // 16  # by which the mask is dilated: outline and shadow of the subject are no background
#: Standard deviation, of colours 0 to 1, up to which a background is flat. An 8-bit step is 0.004, rounding errors of
#: a resized plain colour are 1e-7.
_FLAT = 1e-4


class CopyPaste(BuiltinReward):
    """Correlation, times 100, of an image with its reference outside the subject: 100 for a pasted background.

    Pearson correlation over the pixels outside the reference's mask and a margin (all pixels if there is no mask). Each
    channel is centred by itself, so that neither brightness nor contrast nor a colour cast hides a copy. Of several
    references the largest value counts. High is bad.

    Args:
        threshold: Correlation, times 100, above which an image counts as copied: it is scored 100 and every other one
            0, so that a mean is the share of copied images in percent. Default: the correlation itself is the score.
        name: Name in logs, tables and figures.
        device: Device of the computation. Default: the accelerator, if there is one.
        cache_size: Number of pairs whose references are cached, 64 KiB each.
    """

    kind: ClassVar[str] = "copy-paste"
    needs: ClassVar[tuple[Need, ...]] = ("reference",)

    def __init__(
        self,
        *,
        threshold: Annotated[float, Field(ge=-100, le=100)] | None = None,
        name: str = "copy-paste",
        device: torch.device | str | None = None,
        cache_size: int = 1024,
    ) -> None:
        super().__init__(name, device)
        self._threshold = threshold
        self._cache: PairCache[Tensor] = PairCache(cache_size)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,), -100 to 100, of images (B, 3, H, W) in [0, 1].

        The score is 0 if the mask leaves no background, or either background is flat.

        Raises:
            RewardError: A pair has no references.
        """
        references = self._cache.of(pairs, self._references)
        counts = torch.tensor([len(one) for one in references], device=self._device)
        resized = _resized(images.to(self._device)).repeat_interleave(counts, dim=0)
        shown = torch.cat(references)
        scores = 100 * _correlation(resized, shown[:, :3], shown[:, 3:])
        largest = torch.stack([one.max() for one in torch.split(scores, counts.tolist())])
        return largest if self._threshold is None else 100.0 * (largest > self._threshold)

    def _references(self, pair: Pair) -> Tensor:
        """Return colours and background (1 or 0) of a pair's references, float32 (references, 4, 64, 64)."""
        if not pair.references:
            raise RewardError(f"pair {pair.key!r} has no reference to compare with")
        colours = [_resized(to_tensor(one.convert("RGB"))[None].to(self._device)) for one in pair.references]
        backgrounds = [self._background(mask) for mask in pair.masks]
        return torch.cat([torch.cat(colours), torch.cat(backgrounds)], dim=1)

    def _background(self, mask: Image.Image | None) -> Tensor:
        """Return 1 outside the mask and its margin, else 0, float32 (1, 1, 64, 64)."""
        if mask is None:
            return torch.ones(1, 1, _SIDE, _SIDE, device=self._device)
        subject = torch.from_numpy(np.array(mask.convert("L")) > 127).float()[None, None]
        touched = (_resized(subject.to(self._device)) > 0).float()
        return 1 - functional.max_pool2d(touched, 2 * _MARGIN + 1, stride=1, padding=_MARGIN)


def _resized(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) as float32 (B, C, 64, 64)."""
    return functional.interpolate(images.float(), size=(_SIDE, _SIDE), mode="bilinear", antialias=True)


def _correlation(images: Tensor, references: Tensor, background: Tensor) -> Tensor:
    """Return the correlation (B,) of images and references (B, 3, h, w) over the background (B, 1, h, w)."""
    size = background.sum((2, 3), keepdim=True).clamp(min=1)

    def centred(colours: Tensor) -> Tensor:
        mean = (colours * background).sum((2, 3), keepdim=True) / size
        return ((colours - mean) * background).flatten(1)

    one, other = centred(images), centred(references)
    # Rounding errors of norm() are ten times those of sum().
    lengths = one.square().sum(1).sqrt(), other.square().sum(1).sqrt()
    # All that a flat background could correlate is its rounding errors.
    flat = _FLAT * (3 * size.flatten()).sqrt()
    varied = (lengths[0] > flat) & (lengths[1] > flat)
    cosine = (one * other).sum(1) / (lengths[0] * lengths[1])
    return torch.where(varied, cosine, 0.0).clamp(-1, 1)
