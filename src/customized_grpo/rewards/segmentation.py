"""The subject of a picture, found by a segmentation model of transformers.

Three families of models, by the model type of their config.json:

- by points: SAM, SAM 2 and their kin, asked at a grid of nine points in the middle;
- by queries: MaskFormer, Mask2Former, EoMT; instances or panoptic segments, with classes;
- by classes: SegFormer, BEiT, DPT, UperNet and others; one segment for each class.

All give candidates, and one rule chooses among them, see `choose`. A model that needs code of its own, as BiRefNet
does, is not among them, for that code is never run; a function or class of the user's may call it, see `Segmenter`.
"""

from __future__ import annotations

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
)
from transformers.image_processing_base import ImageProcessingMixin

from customized_grpo.rewards.cache import FeatureCache
from customized_grpo.rewards.checkpoint import check_type, load_judge
from customized_grpo.rewards.custom import load_own
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.frame import Frame
from customized_grpo.rewards.options import Count
from customized_grpo.utils.named import told
from customized_grpo.utils.pixels import to_tensor

_POINTS = (0.25, 0.5, 0.75)  # of width and height
_LEAST = 1e-3  # share of the picture: what is smaller is no subject
#: Masks are kept at this side at most, 64 KiB each.
_KEPT_SIDE = 256


@dataclass(frozen=True)
class Candidates:
    """Segments of one picture: masks bool (N, h, w), confidence float (N,), and class names or None."""

    masks: Tensor
    scores: Tensor
    labels: Sequence[str | None]


def choose(candidates: Candidates, subject: str | None) -> Tensor:
    """The subject's mask, bool (h, w); all of the picture where no candidate will do.

    Where classes bear the subject's name (its last word: the bowl of a berry bowl), the candidates of that class are
    left. Of these it is the one with the most of the middle (by a Gaussian, a quarter of a side wide) and the least of
    the picture's border, as backgrounds have, times the model's confidence.
    """
    masks = candidates.masks.float()
    height, width = masks.shape[-2:]
    rows, columns = (torch.linspace(-2, 2, side, device=masks.device) for side in (height, width))
    middle = torch.exp(-(rows[:, None] ** 2 + columns**2) / 2)
    border = torch.ones(height, width, device=masks.device)
    border[1:-1, 1:-1] = 0
    inside, outside = ((masks * weight).sum((1, 2)) / weight.sum() for weight in (middle, border))
    ranks = inside * (1 - outside) * candidates.scores.float() * (masks.mean((1, 2)) > _LEAST)
    named = [label is not None and _means(label, subject) for label in candidates.labels]
    barred = [label is not None and label.lower() == "background" for label in candidates.labels]
    if any(named) and float(ranks[torch.tensor(named)].max()) > 0:
        barred = [not one for one in named]
    ranks = ranks.masked_fill(torch.tensor(barred, device=ranks.device), 0)
    best = int(ranks.argmax())
    return candidates.masks[best] if float(ranks[best]) > 0 else torch.ones_like(candidates.masks[0])


def _means(label: str, subject: str | None) -> bool:
    words = (subject or "").lower().split()
    return bool(words) and words[-1] in re.split(r"[^a-z]+", label.lower())


def _by_points(model: Any, pixels: Tensor) -> list[Candidates]:
    side = pixels.shape[-1]
    grid = torch.tensor([[[x * side, y * side]] for y in _POINTS for x in _POINTS], device=pixels.device)
    found = model(pixel_values=pixels, input_points=grid.expand(len(pixels), -1, -1, -1), multimask_output=True)
    masks, scores = found.pred_masks.flatten(1, 2) > 0, found.iou_scores.flatten(1)
    return [Candidates(m, s.clamp(min=0), [None] * len(m)) for m, s in zip(masks, scores, strict=True)]


def _by_queries(model: Any, pixels: Tensor) -> list[Candidates]:
    found = model(pixel_values=pixels)
    scores, classes = found.class_queries_logits.softmax(-1)[..., :-1].max(-1)  # the last class is "nothing"
    masks = found.masks_queries_logits > 0
    return [Candidates(m, s, [_name(model, int(i)) for i in c]) for m, s, c in zip(masks, scores, classes, strict=True)]


def _by_classes(model: Any, pixels: Tensor) -> list[Candidates]:
    logits = model(pixel_values=pixels).logits
    if logits.shape[1] == 1:  # the subject against all else
        return [Candidates(one > 0, torch.ones(1, device=one.device), [None]) for one in logits]
    count = logits.shape[1]
    names = [_name(model, i) for i in range(count)]
    masks = functional.one_hot(logits.argmax(1), count).movedim(-1, 1).bool()
    return [Candidates(one, torch.ones(count, device=one.device), names) for one in masks]


def _name(model: Any, index: int) -> str | None:
    name: str | None = model.config.id2label.get(index)
    return name


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
    """Masks of the subjects of pictures, by the model in `path`; those of references are made once and kept.

    Pictures are brought to the square that the model works at, whatever their shape. Or `path` is that of a function
    or class, `file.py:Name` or `package.module:Name`: called with pictures (B, 3, H, W) in [0, 1] on the device and
    the words for their subjects, None where there is none, it returns masks (B, h, w) or (B, 1, h, w), above 0.5 on
    the subject; a class is constructed with `device`, if it takes that. Raises RewardError, which names the reward
    `name`, where no model of a known type can be loaded, and where what is returned are no such masks.
    """

    model: Any = None

    def __init__(
        self,
        path: str,
        *,
        name: str,
        device: torch.device | str = "cpu",
        revision: str = "main",
        batch_size: Count = 8,
        cache_size: int = 4096,
    ) -> None:
        self._name, self._path = name, path
        self._device = torch.device(device)
        self._batch_size = batch_size
        self._found = self._by_model
        if ":" in path and not Path(path).exists():
            self._own, _ = load_own(path, {}, {"device": self._device}, name, "images, subjects")
            _check_call(self._own, path, name)
            self._found = self._by_own
        else:
            kind = check_type(path, MODEL_TYPES, revision, name)
            architecture, types, self._candidates = next(family for family in _FAMILIES if kind in family[1])
            model, self._frame = load_judge(architecture, types, path, revision, name, framed=_square)
            self.model = model.to(device)
        self._cache: FeatureCache[tuple[int, tuple[int, int], str | None]] = FeatureCache(cache_size)

    def references(self, pictures: Sequence[Image.Image], subjects: Sequence[str | None]) -> list[Tensor]:
        """Of each picture: 1 on its subject, 0 outside, float32 (1, H, W) on the CPU.

        `subjects` are the words for what is to be found, as far as they are known.
        """
        keys = [
            (zlib.crc32(picture.tobytes()), picture.size, subject)
            for picture, subject in zip(pictures, subjects, strict=True)
        ]
        by_key = dict(zip(keys, pictures, strict=True))

        def compute(key: tuple[int, tuple[int, int], str | None]) -> Tensor:
            return self._masks(to_tensor(by_key[key].convert("RGB"))[None], [key[2]])[0]

        kept = self._cache.get(keys, compute)
        return [
            _enlarged(kept[key][None, None], picture.size[::-1])[0].cpu()
            for key, picture in zip(keys, pictures, strict=True)
        ]

    @torch.no_grad()
    def pictures(self, images: Tensor, subjects: Sequence[str | None]) -> Tensor:
        """1 on the subjects of pictures (B, 3, H, W) in [0, 1], 0 outside, float32 (B, 1, H, W); not kept."""
        masks = self._masks(images, subjects)
        return _enlarged(torch.stack(masks)[:, None], images.shape[-2:])

    @torch.no_grad()
    def _masks(self, images: Tensor, subjects: Sequence[str | None]) -> list[Tensor]:
        """Bool (h, w) of at most `_KEPT_SIDE` a side."""
        return [
            mask if max(mask.shape) <= _KEPT_SIDE else _enlarged(mask[None, None], (_KEPT_SIDE, _KEPT_SIDE))[0, 0] > 0
            for mask in self._found(images.to(self._device), subjects)
        ]

    def _by_model(self, images: Tensor, subjects: Sequence[str | None]) -> list[Tensor]:
        pixels = self._frame(images)
        found = [one for part in torch.split(pixels, self._batch_size) for one in self._candidates(self.model, part)]
        return [choose(candidates, subject) for candidates, subject in zip(found, subjects, strict=True)]

    def _by_own(self, images: Tensor, subjects: Sequence[str | None]) -> list[Tensor]:
        masks: list[Tensor] = []
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            try:
                made = self._own(part, list(subjects[start : start + self._batch_size]))
            except Exception as error:
                raise RewardError(f"reward {self._name!r}: the segmenter {self._path} failed: {told(error)}") from error
            if isinstance(made, Tensor) and made.ndim == 4 and made.shape[1] == 1:
                made = made[:, 0]
            if not isinstance(made, Tensor) or made.ndim != 3 or len(made) != len(part) or not made.numel():
                found = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
                raise RewardError(
                    f"reward {self._name!r}: the segmenter {self._path} returned {found}; it must return one mask per "
                    f"picture, here a tensor of shape ({len(part)}, h, w)"
                )
            masks += made.to(self._device) > 0.5
        return [mask if float(mask.float().mean()) > _LEAST else torch.ones_like(mask) for mask in masks]


def _check_call(segmenter: Callable[..., Any], path: str, name: str) -> None:
    """Raise RewardError, before any image is there, where a segmenter does not take (images, subjects)."""
    try:
        inspect.signature(segmenter).bind(None, None)
    except TypeError as error:
        raise RewardError(f"reward {name!r}: {path} cannot be called as (images, subjects): {error}") from error
    except ValueError:  # some compiled callables have no signature to check
        return


def _enlarged(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (B, 1, h, w) as 0 and 1, float32 (B, 1, *size)."""
    return (functional.interpolate(masks.float(), size=tuple(size), mode="bilinear") > 0.5).float()


def _square(path: str | Path, revision: str) -> Frame:
    """The square that the image processor's size stands for, with its colours. Raises as `Frame.of`."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision)
    size = settings.get("size")
    given = size if isinstance(size, dict) else {"shortest_edge": size}
    side = given.get("height") or given.get("longest_edge") or given.get("shortest_edge")
    if not isinstance(side, int):
        raise ValueError(f"the image processor's size {size!r} names no side")
    if "shortest_edge" in given:  # the longest_edge beside it is but a bound
        side = int(given["shortest_edge"])
    side = max(32, side // 32 * 32)  # what their backbones divide by
    mean, std = (tuple(float(value) for value in settings[key]) for key in ("image_mean", "image_std"))
    return Frame(mean=mean, std=std, size=(side, side), mode="bilinear")  # type: ignore[arg-type]
