"""An image processor's own framing and colours, done on tensors so that a whole batch goes in one
call.

`Frame` and `PatchFrame` are interchangeable: both have `mean`, `placed` and `inputs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
        mode = _mode(settings.get("resample", 3))
        normalised = settings.get("do_normalize", True)
        return cls(
            mean=_colour(settings["image_mean"]) if normalised else (0.0, 0.0, 0.0),
            std=_colour(settings["image_std"]) if normalised else (1.0, 1.0, 1.0),
            shortest=shortest,
            size=fixed,
            crop=((crop, crop) if isinstance(crop, int) else _size(crop)) if cropped else None,
            mode=mode,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Pixel values float32 (B, 3, h, w) of pictures (B, 3, H, W) in [0, 1] of one size."""
        return _normalised(self.placed(images), self.mean, self.std)

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """The model's arguments, each with a row for every one of `images` (B, 3, H, W)."""
        return {"pixel_values": self(images)}

    def placed(self, images: Tensor) -> Tensor:
        """Resized and cropped alone, float32 (B, C, h, w) in [0, 1]: pictures or masks (B, C, H, W)."""
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
        return images


@dataclass(frozen=True)
class PatchFrame:
    """SigLIP 2's NaFlex framing: the picture's own shape, in as many patches as fit.

    Patches are not padded to `most` as transformers' processor pads them: pictures of one call have one size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch: int
    most: int  #: patches of one picture
    mode: str = "bilinear"

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """The model's arguments, each with a row for every one of `images` (B, 3, H, W) in [0, 1]."""
        placed, count, side = self.placed(images), len(images), self.patch
        high, wide = (length // side for length in placed.shape[-2:])
        cells = _normalised(placed, self.mean, self.std).reshape(count, 3, high, side, wide, side)
        return {
            "pixel_values": cells.permute(0, 2, 4, 3, 5, 1).reshape(count, high * wide, -1),
            "pixel_attention_mask": torch.ones(count, high * wide, dtype=torch.int32, device=images.device),
            "spatial_shapes": torch.tensor([[high, wide]], device=images.device).expand(count, 2),
        }

    def placed(self, images: Tensor) -> Tensor:
        """Resized alone, float32 (B, C, h, w) in [0, 1]: pictures or masks (B, C, H, W)."""
        from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

        size = get_image_size_for_max_num_patches(*images.shape[-2:], self.patch, self.most)
        return functional.interpolate(images.float(), size=size, mode=self.mode, antialias=True).clamp(0, 1)


AnyFrame = Frame | PatchFrame


def open_frame(path: str | Path, revision: str = "main") -> AnyFrame:
    """The frame that the preprocessor_config.json of a folder or hub id describes. Raises as `Frame.of`."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision)
    if "max_num_patches" not in settings:
        return Frame.of(path, revision)
    return PatchFrame(
        mean=_colour(settings["image_mean"]),
        std=_colour(settings["image_std"]),
        patch=int(settings["patch_size"]),
        most=int(settings["max_num_patches"]),
        mode=_mode(settings.get("resample", 2)),
    )


def _normalised(images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    centre, spread = (torch.tensor(colour, device=images.device).view(3, 1, 1) for colour in (mean, std))
    return (images - centre) / spread


def _mode(resample: Any) -> str:
    if resample not in _MODES:
        raise ValueError(f"the image processor's resample {resample!r} is neither 2 (bilinear) nor 3 (bicubic)")
    return _MODES[resample]


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
