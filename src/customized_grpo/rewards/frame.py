"""An image processor's own framing and colours, done on tensors so that a whole batch goes in one
call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_base import ImageProcessingMixin

Size = tuple[int, int]
_MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Frame:
    """Resize, centre crop and normalisation, as a model's preprocessor_config.json has them."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shortest: int | None = None  #: the shorter side is brought to this
    size: Size | None = None  #: (height, width), where the shape is not kept
    crop: Size | None = None
    mode: str = "bicubic"

    @classmethod
    def of(cls, path: str | Path, revision: str = "main") -> Frame:
        """That of the model in a folder or on the hub. Raises OSError where it has none, ValueError
        for odd ones.
        """
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision)
        size, resized = settings.get("size"), settings.get("do_resize", True)
        fixed = _size(size) if resized else None
        shortest = _shortest(size) if resized and fixed is None else None
        if resized and fixed is None and shortest is None:
            raise ValueError(f"the image processor's size {size!r} is neither a shortest edge nor height and width")
        cropped = settings.get("do_center_crop", settings.get("crop_size") is not None)
        crop = settings.get("crop_size")
        resample = settings.get("resample", 3)
        if resample not in _MODES:
            raise ValueError(f"the image processor's resample {resample!r} is neither 2 (bilinear) nor 3 (bicubic)")
        normalised = settings.get("do_normalize", True)
        return cls(
            mean=_colour(settings["image_mean"]) if normalised else (0.0, 0.0, 0.0),
            std=_colour(settings["image_std"]) if normalised else (1.0, 1.0, 1.0),
            shortest=shortest,
            size=fixed,
            crop=((crop, crop) if isinstance(crop, int) else _size(crop)) if cropped else None,
            mode=_MODES[resample],
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Pixel values float32 (B, 3, h, w) of pictures (B, 3, H, W) in [0, 1] of one size."""
        images = images.float()
        height, width = images.shape[-2:]
        target = self.size
        if self.shortest is not None:
            shorter = min(height, width)
            # The longer side is cut off, not rounded, as the processors do.
            target = (height * self.shortest // shorter, width * self.shortest // shorter)
        if target is not None and target != (height, width):
            images = functional.interpolate(images, size=target, mode=self.mode, antialias=True).clamp(0, 1)
        if self.crop is not None:
            images = _centre(images, self.crop)
        mean, std = (torch.tensor(c, device=images.device).view(3, 1, 1) for c in (self.mean, self.std))
        return (images - mean) / std


def _centre(images: Tensor, crop: Size) -> Tensor:
    """The middle of pictures; black borders where they are smaller than that."""
    missing = [max(0, wanted - there) for wanted, there in zip(crop, images.shape[-2:], strict=True)]
    if any(missing):
        vertical, horizontal = missing
        images = functional.pad(
            images,
            (
                horizontal // 2,
                horizontal - horizontal // 2,
                vertical // 2,
                vertical - vertical // 2,
            ),
        )
    top, left = ((there - wanted) // 2 for wanted, there in zip(crop, images.shape[-2:], strict=True))
    return images[..., top : top + crop[0], left : left + crop[1]]


def _size(size: Any) -> Size | None:
    if isinstance(size, dict) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    return None


def _shortest(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    return int(size["shortest_edge"]) if isinstance(size, dict) and "shortest_edge" in size else None


def _colour(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def to_tensor(picture: Image.Image) -> Tensor:
    """A PIL picture as float32 (3, H, W) in [0, 1], or (1, H, W) for mode L."""
    array = np.array(picture, dtype=np.float32) / 255
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1] as an 8-bit image."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
