"""Segmentation of an image's subject by a model of transformers.

Three families of models, by the model type in config.json:

- by points: SAM, SAM 2 and similar, prompted with the box that a detector finds for the subject's word, or else with a
  grid of nine points in the middle;
- by queries: MaskFormer, Mask2Former, EoMT; instances or panoptic segments, with classes;
- by classes: SegFormer, BEiT, DPT, UperNet and others; one segment for each class.

All give candidates, and `choose` selects one. A model that needs code of its own, such as BiRefNet, is not among them:
that code is never run, but a function or class of the user may call it, see `Segmenter`.
"""

import inspect
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForMaskGeneration,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoModelForZeroShotObjectDetection,
)

from customized_grpo.rewards.cache import LruCache
from customized_grpo.rewards.callables import load_own
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.frame import open_square
from customized_grpo.rewards.loading import check_type, load_model, load_tokenizer
from customized_grpo.utils.named import error_text
from customized_grpo.utils.pixels import to_tensor

#: The default for photos: both are published under Apache-2.0, in safetensors, without code of their own or a gate.
DEFAULT_SEGMENTER, DEFAULT_DETECTOR = "facebook/sam2.1-hiera-small", "IDEA-Research/grounding-dino-tiny"

_POINTS = (0.25, 0.5, 0.75)  # of width and height
_SMALLEST = 1e-3  # share of the image that a subject has at least
_CACHED_SIDE = 256  # largest side of a cached mask, which takes 64 KiB
_BATCH = 8
_CACHE = 4096
_CONFIDENT = 0.25  # score from which a box counts, the default of transformers' post-processing


@dataclass(frozen=True)
class Candidates:
    """Segments of one image: masks bool (N, h, w), confidence float (N,), and class names or None."""

    masks: Tensor
    scores: Tensor
    labels: Sequence[str | None]


def choose(candidates: Candidates, subject: str | None) -> Tensor:
    """Return the subject's mask, bool (h, w); the whole image if no candidate fits.

    If classes have the subject's name (its last word), only candidates of that class remain. The best one has the most
    of the middle (a Gaussian, a quarter of a side wide) and the least of the border, times the model's confidence.
    """
    masks = candidates.masks.float()
    height, width = masks.shape[-2:]
    rows, columns = (torch.linspace(-2, 2, side, device=masks.device) for side in (height, width))
    middle = torch.exp(-(rows[:, None] ** 2 + columns**2) / 2)
    border = torch.ones(height, width, device=masks.device)
    border[1:-1, 1:-1] = 0
    inside, outside = ((masks * weight).sum((1, 2)) / weight.sum() for weight in (middle, border))
    ranks = inside * (1 - outside) * candidates.scores.float() * (masks.mean((1, 2)) > _SMALLEST)
    labels = [(label or "").lower() for label in candidates.labels]
    words = (subject or "").lower().split()
    named = [bool(words) and words[-1] in re.split(r"[^a-z]+", label) for label in labels]
    excluded = [label == "background" for label in labels]
    if any(named) and float(ranks[torch.tensor(named)].max()) > 0:
        excluded = [not one for one in named]
    ranks = ranks.masked_fill(torch.tensor(excluded, device=ranks.device), 0)
    best = int(ranks.argmax())
    return candidates.masks[best] if float(ranks[best]) > 0 else torch.ones_like(candidates.masks[0])


class Detector:
    """Boxes of subjects by their words, of an open-vocabulary detector (Grounding DINO, arXiv 2303.05499)."""

    TYPES = ("grounding-dino", "mm-grounding-dino")

    def __init__(self, path: str, *, name: str, device: torch.device | str, revision: str = "main") -> None:
        self._device = torch.device(device)
        model = load_model(AutoModelForZeroShotObjectDetection, self.TYPES, path, revision, name)
        self._tokenizer = load_tokenizer(path, revision, name, model.config.text_config.vocab_size)
        self._frame = open_square(path, revision, name)
        self.model = model.to(self._device)

    @torch.no_grad()
    def box(self, image: Tensor, subject: str) -> Tensor | None:
        """Return the best box (4,), left, top, right and bottom as shares of an image (3, H, W); None if unsure."""
        text = f"{subject.strip().lower().rstrip('.')}."  # the form of the model's training
        tokens = self._tokenizer(
            [text], truncation=True, max_length=self.model.config.max_text_len, return_tensors="pt"
        )
        pixels = self._frame(image[None].to(self._device))
        found = self.model(pixel_values=pixels, **tokens.to(self._device))
        scores = found.logits[0].sigmoid().amax(-1)
        best = int(scores.argmax())
        if float(scores[best]) < _CONFIDENT:
            return None
        x, y, width, height = found.pred_boxes[0, best].float()
        return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2]).clamp(0, 1)


def _in_box(model: Any, pixels: Tensor, box: Tensor) -> Tensor:
    """Return the mask, bool (h, w), that a model by points has for a box of `Detector.box` in pixels (3, S, S)."""
    found = model(pixel_values=pixels[None], input_boxes=(box * pixels.shape[-1])[None, None], multimask_output=False)
    mask: Tensor = found.pred_masks[0, 0, 0] > 0
    return mask if float(mask.float().mean()) > _SMALLEST else torch.ones_like(mask)


def _by_points(model: Any, pixels: Tensor) -> list[Candidates]:
    side = pixels.shape[-1]
    grid = torch.tensor([[[x * side, y * side]] for y in _POINTS for x in _POINTS], device=pixels.device)
    found = model(pixel_values=pixels, input_points=grid.expand(len(pixels), -1, -1, -1), multimask_output=True)
    masks, scores = found.pred_masks.flatten(1, 2) > 0, found.iou_scores.flatten(1)
    return [Candidates(m, s.clamp(min=0), [None] * len(m)) for m, s in zip(masks, scores, strict=True)]


def _by_queries(model: Any, pixels: Tensor) -> list[Candidates]:
    found = model(pixel_values=pixels)
    scores, classes = found.class_queries_logits.softmax(-1)[..., :-1].max(-1)  # the last class is "nothing"
    masks, name = found.masks_queries_logits > 0, model.config.id2label.get
    return [Candidates(m, s, [name(int(i)) for i in c]) for m, s, c in zip(masks, scores, classes, strict=True)]


def _by_classes(model: Any, pixels: Tensor) -> list[Candidates]:
    logits = model(pixel_values=pixels).logits
    count = logits.shape[1]
    if count == 1:  # the subject against everything else
        return [Candidates(one > 0, torch.ones(1, device=one.device), [None]) for one in logits]
    names = [model.config.id2label.get(i) for i in range(count)]
    masks = functional.one_hot(logits.argmax(1), count).movedim(-1, 1).bool()
    return [Candidates(one, torch.ones(count, device=one.device), names) for one in masks]


Family = Callable[[Any, Tensor], list[Candidates]]
_FAMILIES: tuple[tuple[Any, tuple[str, ...], Family], ...] = (
    (AutoModelForMaskGeneration, ("sam", "sam2", "sam2_video", "sam_hq", "edgetam", "sam3_tracker"), _by_points),
    (AutoModelForUniversalSegmentation, ("maskformer", "mask2former", "eomt", "eomt_dinov3"), _by_queries),
    (
        AutoModelForSemanticSegmentation,
        ("segformer", "beit", "data2vec-vision", "dpt", "mobilevit", "mobilevitv2", "upernet"),
        _by_classes,
    ),
)
MODEL_TYPES = tuple(kind for _, kinds, _ in _FAMILIES for kind in kinds)


class Segmenter:
    """Masks of the subjects of images; masks of references are cached.

    Images are resized to the square of the model's image processor.

    Args:
        path: Hub id or folder of a model. Or a function or class, `file.py:Name` or `package.module:Name`: called with
            images (B, 3, H, W) in [0, 1] on the device and a list of the words for their subjects (None if there is
            none), it returns masks (B, h, w) or (B, 1, h, w), above 0.5 on the subject. A class is constructed with
            `device`, if it takes that.
        name: Name of the reward, for messages.
        device: Device of the model.
        revision: Revision on the hub.
        detector: Hub id or folder of a `Detector`, only for a model by points. An image without a word for its subject,
            or in which it is not found, is prompted with points.
        detector_revision: Revision of `detector` on the hub.

    Raises:
        RewardError: The model is of no known type or cannot be loaded; later, a function returns other values.
    """

    model: Any = None
    detector: Detector | None = None

    def __init__(
        self,
        path: str,
        *,
        name: str,
        device: torch.device | str = "cpu",
        revision: str = "main",
        detector: str | None = None,
        detector_revision: str = "main",
    ) -> None:
        self._name, self._path, self._device = name, path, torch.device(device)
        self._cache: LruCache[tuple[int, tuple[int, int], str | None], Tensor] = LruCache(_CACHE)
        self._own: Callable[..., Any] | None = None
        if ":" in path and not Path(path).exists():
            self._own, _ = load_own(path, {}, {"device": self._device}, name, "images, subjects")
            try:
                inspect.signature(self._own).bind(None, None)
            except (TypeError, ValueError) as error:
                raise RewardError(f"reward {name!r}: {path} cannot be called as (images, subjects): {error}") from error
            return
        kind = check_type(path, MODEL_TYPES, revision, name).model_type
        architecture, types, self._candidates = next(family for family in _FAMILIES if kind in family[1])
        if detector is not None:
            if self._candidates is not _by_points:
                raise RewardError(
                    f"reward {name!r}: {path!r} is a {kind} model, which takes no boxes; remove the detector"
                )
            self.detector = Detector(detector, name=name, device=device, revision=detector_revision)
        self.model = load_model(architecture, types, path, revision, name).to(device)
        self._frame = open_square(path, revision, name)

    def reference(self, image: Image.Image, subject: str | None) -> Tensor:
        """Return float32 (1, H, W) on the CPU, 1 on the subject and 0 elsewhere. `subject` is the word for it."""
        key = (zlib.crc32(image.tobytes()), image.size, subject)
        mask = self._cache.fill([key], lambda _: self._masks(to_tensor(image.convert("RGB"))[None], [subject])[0])[key]
        return _enlarged(mask[None, None], image.size[::-1])[0].cpu()

    def images(self, images: Tensor, subjects: Sequence[str | None]) -> Tensor:
        """Return float32 (B, 1, H, W), 1 on the subjects of images (B, 3, H, W) in [0, 1]; not cached."""
        return _enlarged(torch.stack(self._masks(images, subjects))[:, None], images.shape[-2:])

    @torch.no_grad()
    def _masks(self, images: Tensor, subjects: Sequence[str | None]) -> list[Tensor]:
        """Return bool (h, w) for each image, at most `_CACHED_SIDE` per side."""
        images = images.to(self._device)
        pixels = images if self._own is not None else self._frame(images)
        masks: list[Tensor] = []
        for start in range(0, len(images), _BATCH):
            part, words = pixels[start : start + _BATCH], list(subjects[start : start + _BATCH])
            if self._own is not None:
                masks += self._own_masks(self._own, part, words)
            else:
                boxes = [
                    self._box(image, word) for image, word in zip(images[start : start + _BATCH], words, strict=True)
                ]
                found = self._candidates(self.model, part) if any(box is None for box in boxes) else []
                masks += [
                    choose(found[i], words[i]) if box is None else _in_box(self.model, part[i], box)
                    for i, box in enumerate(boxes)
                ]
        return [
            mask if max(mask.shape) <= _CACHED_SIDE else _enlarged(mask[None, None], (_CACHED_SIDE,) * 2)[0, 0] > 0
            for mask in masks
        ]

    def _box(self, image: Tensor, subject: str | None) -> Tensor | None:
        return None if self.detector is None or not subject else self.detector.box(image, subject)

    def _own_masks(self, function: Callable[..., Any], images: Tensor, subjects: list[str | None]) -> list[Tensor]:
        try:
            made = function(images, subjects)
        except Exception as error:
            raise RewardError(
                f"reward {self._name!r}: the segmenter {self._path} failed: {error_text(error)}"
            ) from error
        if isinstance(made, Tensor) and made.ndim == 4 and made.shape[1] == 1:
            made = made[:, 0]
        if not isinstance(made, Tensor) or made.ndim != 3 or len(made) != len(images) or not made.numel():
            found = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
            raise RewardError(
                f"reward {self._name!r}: the segmenter {self._path} returned {found}; it must return one mask per "
                f"image, here a tensor of shape ({len(images)}, h, w)"
            )
        masks = made.to(self._device) > 0.5
        return [mask if float(mask.float().mean()) > _SMALLEST else torch.ones_like(mask) for mask in masks]


def _enlarged(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Return masks (B, 1, h, w) as 0 and 1, float32 (B, 1, *size)."""
    return (functional.interpolate(masks.float(), size=tuple(size), mode="bilinear") > 0.5).float()
