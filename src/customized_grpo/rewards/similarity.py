"""Identity rewards of one vision encoder: DINO, its patches, CLIP-I and SigLIP; with a guard against pasting."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, CLIPModel

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward, Count
from customized_grpo.rewards.cache import PairCache
from customized_grpo.rewards.copy_paste import CopyPaste
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.frame import Frame, open_frame
from customized_grpo.rewards.loading import load_model
from customized_grpo.rewards.segmentation import DEFAULT_DETECTOR, DEFAULT_SEGMENTER, Segmenter
from customized_grpo.utils.hub import is_embedded
from customized_grpo.utils.pixels import to_tensor


class SimilarityReward(BuiltinReward):
    """Cosine of the features of an image and of its references, times 100. Several references count by their mean.

    The reference's subject is cut out by its mask and the rest filled with the processor's mean colour. Models work in
    float32, whatever the precision of their weights.

    Args:
        path: Hub id or folder of the model.
        name: Name in logs, tables and figures.
        device: Device of the model. Default: the accelerator, if there is one.
        segmented: Cut out the subject of references that have a mask.
        segmenter: Model that makes masks for references without one: a hub id, folder or Python path (see `Segmenter`);
            None for none. Default: for DINO, `DEFAULT_SEGMENTER` with `DEFAULT_DETECTOR`, loaded when the first
            reference without a mask is met; none for the other models and for embedded ones.
        detector: Model that finds the subject by its word, for a segmenter by points (see `Segmenter`).
        segment_images: Cut out the subject of generated images by the segmenter, too.
        paste_tolerance: Guard against pasted references: the score is multiplied by (100 - c) / (100 - paste_tolerance)
            for images whose `CopyPaste` score c is above this, 0 to below 100, so that a whole paste scores 0. None: no
            guard. Other photos of one subject in DreamBench have scores c of 69 at most.
        resize: Length of the shorter side (bicubic) in place of the processor's framing; `crop` must be set, too.
        crop: Side of the centre crop.
        batch_size: Images per forward pass.
        cache_size: Number of pairs whose reference features are cached.
        revision: Revision of `path` on the hub.
        segmenter_revision: Revision of `segmenter` on the hub.
        detector_revision: Revision of `detector` on the hub.

    Raises:
        RewardError: A model cannot be loaded or is of another type, or options contradict each other.
    """

    kind: ClassVar[str]
    default_path: ClassVar[str]
    architecture: ClassVar[Any] = AutoModel
    types: ClassVar[Collection[str]]
    #: Segmenter, with `DEFAULT_DETECTOR`, if no other is named.
    default_segmenter: ClassVar[str | None] = None
    #: Weights that some checkpoints lack and no feature depends on.
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
        segmenter: str | None = "default",
        detector: str | None = None,
        segment_images: bool = False,
        paste_tolerance: Annotated[float, Field(ge=0, lt=100)] | None = None,
        resize: int | None = None,
        crop: int | None = None,
        batch_size: Count = 64,
        cache_size: int | None = None,
        revision: str = "main",
        segmenter_revision: str = "main",
        detector_revision: str = "main",
    ) -> None:
        super().__init__(name, device)
        self.segmented = segmented
        self.segment_images = segment_images
        where = str(path or self.default_path)
        named = segmenter not in (None, "default") or detector is not None
        if segmenter == "default":
            segmenter, default_detector = self.default_segmentation(where)
            detector = detector or default_detector
        if segmenter is None and (segment_images or detector is not None):
            unused = "segment_images" if segment_images else "the detector"
            raise RewardError(f"reward {self.name!r}: {unused} needs a model; name one as segmenter")
        if named and not (segmented or segment_images):
            raise RewardError(f"reward {self.name!r}: segmented=false leaves the segmenter unused; remove one of them")
        if (resize, crop) != (None, None) and not 1 <= (crop or 0) <= (resize or 0):
            raise RewardError(f"reward {self.name!r}: resize and crop belong together, crop 1 to resize; give both")
        self._batch_size = batch_size
        self._paste_tolerance = paste_tolerance
        self._copy_paste = CopyPaste(name=self.name, device=self._device)
        self._cache: PairCache[Tensor] = PairCache(self.default_cache_size if cache_size is None else cache_size)
        model = load_model(self.architecture, self.types, where, revision, self.name, self.unused)
        self.frame = open_frame(where, revision, self.name)
        if resize is not None and crop is not None:
            self.frame = Frame(mean=self.frame.mean, std=self.frame.std, shortest=resize, crop=(crop, crop))
        self._segmenter = segmenter
        self._segmenter_options: dict[str, Any] = {
            "revision": segmenter_revision,
            "detector": detector,
            "detector_revision": detector_revision,
        }
        if named or segment_images:
            _ = self.segmenter  # load it
        self.model = model.to(self._device)

    @classmethod
    def default_segmentation(cls, path: str) -> tuple[str, str] | tuple[None, None]:
        """Return the segmenter and detector for photos of a reward with the model at `path`, if it has any."""
        if cls.default_segmenter is None or is_embedded(path):
            return None, None
        return cls.default_segmenter, DEFAULT_DETECTOR

    @cached_property
    def segmenter(self) -> Segmenter | None:
        """The model that makes masks, if any; loaded when it is first used."""
        if self._segmenter is None:
            return None
        try:
            return Segmenter(self._segmenter, name=self.name, device=self._device, **self._segmenter_options)
        except RewardError as error:
            raise RewardError(
                f"{error}; or give each reference a mask, or set options.segmenter to null to compare whole images"
            ) from error

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Load the segmenter now if one of these pairs has a reference without a mask. Raises RewardError."""
        if self.segmented and any(mask is None for pair in pairs for mask in pair.masks):
            _ = self.segmenter

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,), -100 to 100, of images (B, 3, H, W) in [0, 1].

        Raises:
            RewardError: A pair has no references, or a mask of another size than its reference.
        """
        references = self._cache.of(pairs, self._references)
        features = self._image_features(images.to(self._device), pairs)
        scores = torch.stack([100 * self._similarity(*both) for both in zip(references, features, strict=True)])
        if self._paste_tolerance is None:
            return scores
        return scores * self._unpasted(images, pairs, self._paste_tolerance)

    def _unpasted(self, images: Tensor, pairs: Sequence[Pair], tolerance: float) -> Tensor:
        """Return the factor (B,) of `paste_tolerance`, 0 for a pasted reference to 1."""
        if self.segmented:  # outside the masks that are scored, whoever made them
            masked = {pair: replace(pair, masks=tuple(map(_part, self._masks(pair)))) for pair in dict.fromkeys(pairs)}
            pairs = [masked[pair] for pair in pairs]
        return ((100 - self._copy_paste(images, pairs)) / (100 - tolerance)).clamp(0, 1)

    def _encode(self, pixels: Tensor) -> Tensor:
        """Return the model's features (B, ..., width) of a batch."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def _marked(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return unit features (B, ...) with what they need of the subject's mask, (B, 1, H, W) or None for all."""
        return features

    def _joined(self, references: Sequence[Tensor]) -> Tensor:
        """Return the features of a pair's references as one tensor."""
        return torch.stack(list(references))

    def _similarity(self, references: Tensor, image: Tensor) -> Tensor:
        """Return the mean similarity, -1 to 1, of the result of `_joined` and the features of one image."""
        return (references @ image).mean()

    def _image_features(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        mask = None
        if self.segment_images and self.segmenter is not None:
            mask = self.segmenter.images(images, [pair.subject for pair in pairs])
        return self._marked(self._features(self.frame(self._cut(images, mask))), mask)

    def _references(self, pair: Pair) -> Tensor:
        """Return the result of `_joined` for the references of a pair."""
        if not pair.references:
            raise RewardError(f"pair {pair.key!r} has no reference to compare with")
        masks = self._masks(pair)
        pixels = [
            self.frame(self._cut(to_tensor(reference.convert("RGB")), mask)[None].to(self._device))
            for reference, mask in zip(pair.references, masks, strict=True)
        ]
        if len({one.shape for one in pixels}) > 1:  # a processor that does not crop
            features = [self._features(one) for one in pixels]
        else:
            features = list(torch.split(self._features(torch.cat(pixels)), 1))
        return self._joined(
            [
                self._marked(one, None if mask is None else mask[None].to(self._device))[0]
                for one, mask in zip(features, masks, strict=True)
            ]
        )

    def _masks(self, pair: Pair) -> list[Tensor | None]:
        """Return float32 (1, H, W) for each reference, 1 on its subject and 0 elsewhere; None if all of it counts."""
        masks: list[Tensor | None] = [None] * len(pair.references)
        if not self.segmented:
            return masks
        for i, (reference, mask) in enumerate(zip(pair.references, pair.masks, strict=True)):
            if mask is None:
                if self.segmenter is not None:
                    masks[i] = self.segmenter.reference(reference, pair.subject)
                continue
            if mask.size != reference.size:
                raise RewardError(
                    f"pair {pair.key!r}: a mask of {mask.size} for a reference of {reference.size}; make them equal"
                )
            masks[i] = to_tensor(mask.convert("L"))
        return masks

    def _cut(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """Return images (..., 3, H, W) with the mean colour outside masks (..., 1, H, W)."""
        if masks is None:
            return images
        mean = torch.tensor(self.frame.mean, device=images.device).view(3, 1, 1)
        return masks * images + (1 - masks) * mean

    def _features(self, pixels: Tensor) -> Tensor:
        """Return unit vectors (B, ..., width) of pixel values, in batches."""
        encoded = [self._encode(batch) for batch in torch.split(pixels, self._batch_size)]
        return functional.normalize(torch.cat(encoded).float(), dim=-1)


class ClipImage(SimilarityReward):
    """Image features of CLIP (DreamBooth's CLIP-I): 50 to 100 in practice, more by category than by identity."""

    kind = "clip-image"
    default_path = "openai/clip-vit-large-patch14"
    architecture = CLIPModel
    types = ("clip",)


class SiglipImage(SimilarityReward):
    """Image features of SigLIP or SigLIP 2 of a fixed resolution, which both have the model type siglip."""

    kind = "siglip-image"
    default_path = "google/siglip2-base-patch16-224"
    types = ("siglip",)


class Dino(SimilarityReward):
    """Class token of DINO, DINOv2 or DINOv3 (DreamBooth's DINO score); 100 for the reference itself."""

    kind = "dino"
    default_path = "facebook/dinov2-base"
    default_segmenter = DEFAULT_SEGMENTER
    types = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
    unused = frozenset({"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"})

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class DinoPatches(Dino):
    """Mean cosine of the patches of the reference's subject, each with its best patch of the image.

    Patches count by the share that the mask covers: a copied background has no effect on the score. With
    `segment_images` only patches of the image's subject can be the best. A cached reference takes 0.8 MB with
    DINOv2-base.
    """

    kind = "dino-patches"
    default_cache_size = 512

    def _encode(self, pixels: Tensor) -> Tensor:
        first = 1 + getattr(self.model.config, "num_register_tokens", 0)
        return self.model(pixel_values=pixels).last_hidden_state[:, first:]

    def _marked(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return patches (B, P, width + 1); the last value is the share of the patch, 0 to 1, that is the subject."""
        if mask is None:
            return functional.pad(features, (0, 1), value=1.0)
        side: Any = self.model.config.patch_size
        placed = self.frame.placed(mask)
        return torch.cat([features, functional.avg_pool2d(placed, side).flatten(1)[..., None]], dim=-1)

    def _joined(self, references: Sequence[Tensor]) -> Tensor:
        """Return (references, P, width + 1): patches with any part of the subject, padded with patches of share 0."""
        subjects = [patches[patches[:, -1] > 0] for patches in references]
        if any(len(patches) == 0 for patches in subjects):
            raise RewardError(
                f"reward {self.name!r}: a reference's subject lies outside the centre crop of the model; "
                "crop the reference to its subject"
            )
        return pad_sequence(subjects, batch_first=True)

    def _similarity(self, references: Tensor, image: Tensor) -> Tensor:
        cosines = references[..., :-1] @ image[:, :-1].T
        # At least half a patch, or the largest share if the subject is small.
        inside = image[:, -1] >= image[:, -1].max().clamp(max=0.5)
        best = cosines[..., inside].amax(-1)
        shares = references[..., -1]
        return ((best * shares).sum(1) / shares.sum(1)).mean()


def _part(mask: Tensor | None) -> Image.Image | None:
    """Return a mask (1, H, W) of 0 and 1 as an image of mode L; None if it marks everything: no background is left."""
    return (
        None if mask is None or bool(mask.min() > 0) else Image.fromarray((mask[0] * 255).round().byte().cpu().numpy())
    )
