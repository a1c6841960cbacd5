"""What judges of identity share: subjects cut out, references seen once, similarity to each of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward
from customized_grpo.rewards.cache import FeatureCache, PairKey, pair_keys
from customized_grpo.rewards.checkpoint import load_judge
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.frame import AnyFrame, Frame, open_frame
from customized_grpo.rewards.options import Count
from customized_grpo.rewards.segmentation import Segmenter
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.pixels import to_tensor


class SimilarityReward(BuiltinReward):
    """Similarity, times 100, of a picture to its references by the features of a vision model.

    The reference's subject is cut out by its mask, the rest filled with the processor's mean colour; where a reference
    has no mask, `segmenter` (a hub id, folder or Python path, see `segmentation`) makes one, and without a segmenter,
    or where `segmented` is false, the whole reference counts. With `segment_pictures` the subject of the generated
    picture is cut out by the segmenter, too. Of several references the mean counts. The features of a pair's references
    are computed once and kept, those of at most `cache_size` pairs. `resize` and `crop` replace the processor's
    framing: the shorter side is brought to the one (bicubic), the middle of the other's side is seen. Weights stored in
    any precision work in float32; no gradient.
    """

    kind: ClassVar[str]
    default_path: ClassVar[str]
    architecture: ClassVar[Any]
    types: ClassVar[Collection[str]]
    #: Weights that the features do not depend on and some checkpoints leave out.
    unused: ClassVar[Collection[str]] = ()
    default_cache_size: ClassVar[int] = 4096
    needs: ClassVar[tuple[Need, ...]] = ("reference",)

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        name: str | None = None,
        device: torch.device | str | None = None,
        segmented: bool = True,
        segmenter: str | None = None,
        segment_pictures: bool = False,
        resize: int | None = None,
        crop: int | None = None,
        batch_size: Count = 64,
        cache_size: int | None = None,
        revision: str = "main",
        segmenter_revision: str = "main",
    ) -> None:
        self.name = name or self.kind
        self.segmented = segmented
        self.segment_pictures = segment_pictures
        if segmenter is None and segment_pictures:
            raise RewardError(f"reward {self.name!r}: segment_pictures needs a model; name one as segmenter")
        if segmenter is not None and not (segmented or segment_pictures):
            raise RewardError(f"reward {self.name!r}: segmented=false leaves the segmenter nothing to do; drop one")
        framed = resize is not None and crop is not None and 1 <= crop <= resize
        if not framed and (resize, crop) != (None, None):
            raise RewardError(f"reward {self.name!r}: resize and crop belong together, crop 1 to resize; give both")
        self._batch_size = batch_size
        self._device = device_of(device, f"reward {self.name!r}: device")
        self._cache: FeatureCache[PairKey] = FeatureCache(self.default_cache_size if cache_size is None else cache_size)
        frame: AnyFrame
        model, frame = load_judge(
            self.architecture,
            self.types,
            str(path or self.default_path),
            revision,
            self.name,
            self.unused,
            framed=open_frame,
        )
        if resize is not None and crop is not None:
            frame = Frame(mean=frame.mean, std=frame.std, shortest=resize, crop=(crop, crop))
        self.frame = frame
        self.segmenter = (
            None
            if segmenter is None
            else Segmenter(segmenter, name=self.name, device=self._device, revision=segmenter_revision)
        )
        self.model = model.to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,), -100 to 100, of pictures (B, 3, H, W) in [0, 1].

        Raises RewardError for a pair without references, or with a mask of another size than its reference's.
        """
        keys = pair_keys(pairs)
        by_key = dict(zip(keys, pairs, strict=True))
        references = self._cache.get(keys, lambda key: self._references(by_key[key]))
        pictures = self._pictures(images.to(self._device), pairs)
        return torch.stack(
            [100 * self._similarity(references[key], picture) for key, picture in zip(keys, pictures, strict=True)]
        )

    def _encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """The model's features (B, ..., width) of a batch."""
        raise NotImplementedError

    def _marked(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Unit features (B, ...) with what they need of the subject's mask, (B, 1, H, W) or None for all."""
        return features

    def _joined(self, references: Sequence[Tensor]) -> Tensor:
        """The features of a pair's references as one tensor."""
        return torch.stack(list(references))

    def _similarity(self, references: Tensor, picture: Tensor) -> Tensor:
        """Mean similarity, -1 to 1, of what `_joined` made to the features of one picture."""
        return (references @ picture).mean()

    def _pictures(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        if self.segmenter is None or not self.segment_pictures:
            return self._marked(self._features(self.frame.inputs(images)), None)
        mask = self.segmenter.pictures(images, [pair.subject for pair in pairs])
        return self._marked(self._features(self.frame.inputs(self._cut(images, mask))), mask)

    def _references(self, pair: Pair) -> Tensor:
        """What `_joined` makes of a pair, all its references in one batch."""
        if not pair.references:
            raise RewardError(f"pair {pair.key!r} has no reference to compare with")
        masks = self._masks(pair)
        shown = [
            self._cut(to_tensor(reference.convert("RGB")), mask)[None].to(self._device)
            for reference, mask in zip(pair.references, masks, strict=True)
        ]
        inputs = [self.frame.inputs(one) for one in shown]
        if len({one["pixel_values"].shape for one in inputs}) > 1:  # a processor that does not crop
            features = [self._features(one) for one in inputs]
        else:
            together = self._features({key: torch.cat([one[key] for one in inputs]) for key in inputs[0]})
            features = list(torch.split(together, 1))
        marked = [
            self._marked(one, None if mask is None else mask[None].to(self._device))[0]
            for one, mask in zip(features, masks, strict=True)
        ]
        return self._joined(marked)

    def _masks(self, pair: Pair) -> list[Tensor | None]:
        """Of each reference, in order: 1 on its subject, 0 outside, float32 (1, H, W); None: all of it counts."""
        found: list[Tensor | None] = []
        wanted: list[tuple[int, Image.Image, str | None]] = []
        for reference, mask in zip(pair.references, pair.masks, strict=True):
            if mask is None and self.segmenter is not None and self.segmented:
                wanted.append((len(found), reference, pair.subject))
            if mask is None or not self.segmented:
                found.append(None)
                continue
            if mask.size != reference.size:
                raise RewardError(
                    f"pair {pair.key!r}: a mask of {mask.size} for a reference of {reference.size}; make them equal"
                )
            found.append(to_tensor(mask.convert("L")))
        if wanted and self.segmenter is not None:
            places, references, subjects = zip(*wanted, strict=True)
            for place, made in zip(places, self.segmenter.references(references, subjects), strict=True):
                found[place] = made
        return found

    def _cut(self, pictures: Tensor, masks: Tensor | None) -> Tensor:
        """Pictures (..., 3, H, W) with the mean colour outside masks (..., 1, H, W)."""
        if masks is None:
            return pictures
        mean = torch.tensor(self.frame.mean, device=pictures.device).view(3, 1, 1)
        return masks * pictures + (1 - masks) * mean

    def _features(self, inputs: dict[str, Tensor]) -> Tensor:
        """Unit vectors (B, ..., width) of the model's arguments, in batches."""
        batches = zip(*(torch.split(rows, self._batch_size) for rows in inputs.values()), strict=True)
        encoded = [self._encode(dict(zip(inputs, batch, strict=True))) for batch in batches]
        return functional.normalize(torch.cat(encoded).float(), dim=-1)
