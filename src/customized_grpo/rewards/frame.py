"""Preprocessing of images as a model's preprocessor_config.json describes it, on tensors and whole batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_base import ImageProcessingMixin

from customized_grpo.rewards.loading import unloadable
from customized_grpo.utils.hub import resolve

Size = tuple[int, int]
Colour = tuple[float, float, float]
_MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Frame:
    """Resize, centre crop and normalise.

    The `shortest` or `longest` side gets a length without a change of the aspect ratio, which `size` (height, width)
    changes; `crop` adds black borders if needed. `mode` is torch's interpolation mode.
    """

    mean: Colour
    std: Colour
    shortest: int | None = None
    longest: int | None = None
    size: Size | None = None
    crop: Size | None = None
    mode: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """Return pixel values float32 (B, 3, h, w) of images (B, 3, H, W) in [0, 1]."""
        centre, spread = (torch.tensor(colour, device=images.device).view(3, 1, 1) for colour in (self.mean, self.std))
        return (self.placed(images) - centre) / spread

    def placed(self, images: Tensor) -> Tensor:
        """Resize and crop images or masks (B, C, H, W), float32 (B, C, h, w) in [0, 1]."""
        images = images.float()
        height, width = images.shape[-2:]
        target = self.size
        if self.shortest is not None:
            shorter = min(height, width)
            # The longer side is rounded down, as the processors of transformers do.
            target = (height * self.shortest // shorter, width * self.shortest // shorter)
        if self.longest is not None:
            scale = self.longest / max(height, width)
            target = (round(height * scale), round(width * scale))
        if target is not None and target != (height, width):
            images = functional.interpolate(images, size=target, mode=self.mode, antialias=True).clamp(0, 1)
        return images if self.crop is None else _centre(images, self.crop)


def open_frame(path: str, revision: str = "main", name: str = "") -> Frame:
    """Return the preprocessing of a model. RewardError if there is no preprocessor_config.json that is supported."""
    try:
        settings = _settings(path, revision)
        resized, crop = settings.get("do_resize", True), settings.get("crop_size")
        resample = settings.get("resample", 3)
        if resample not in _MODES:
            raise ValueError(f"the image processor's resample {resample!r} is neither 2 (bilinear) nor 3 (bicubic)")
        size = settings.get("size") if resized else None
        if isinstance(size, int) and crop is None:  # of ViT: a square; with a crop, as of CLIP: the shorter side
            size = {"height": size, "width": size}
        fixed, shortest = _size(size), size.get("shortest_edge") if isinstance(size, dict) else size
        longest = size.get("longest_edge") if isinstance(size, dict) and fixed is None and shortest is None else None
        if resized and fixed is None and not isinstance(shortest or longest, int):
            raise ValueError(f"the image processor's size {size!r} is neither an edge nor height and width")
        cropped = settings.get("do_center_crop", crop is not None)
        normalised = settings.get("do_normalize", True)
        return Frame(
            mean=_colour(settings["image_mean"]) if normalised else (0.0, 0.0, 0.0),
            std=_colour(settings["image_std"]) if normalised else (1.0, 1.0, 1.0),
            shortest=None if fixed else shortest,
            longest=longest,
            size=fixed,
            crop=((crop, crop) if isinstance(crop, int) else _size(crop)) if cropped else None,
            mode=_MODES[resample],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unloadable(path, name, error) from error


def open_square(path: str, revision: str = "main", name: str = "") -> Frame:
    """Return the preprocessing to a square of the image processor's size. Raises as `open_frame`."""
    try:
        settings = _settings(path, revision)
        size = settings.get("size")
        given = size if isinstance(size, dict) else {"shortest_edge": size}
        # A longest edge beside a shortest one is an upper bound.
        side = given.get("shortest_edge") or given.get("height") or given.get("longest_edge")
        if not isinstance(side, int):
            raise ValueError(f"the image processor's size {size!r} has no side")
        side = max(32, side // 32 * 32)  # backbones need multiples of 32
        mean, std = (_colour(settings[key]) for key in ("image_mean", "image_std"))
        return Frame(mean=mean, std=std, size=(side, side), mode="bilinear")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unloadable(path, name, error) from error


def _settings(path: str, revision: str) -> dict[str, Any]:
    return ImageProcessingMixin.get_image_processor_dict(resolve(path), revision=revision)[0]


def _centre(images: Tensor, crop: Size) -> Tensor:
    """Return the middle of images, with black borders if they are smaller."""
    padding: list[int] = []  # negative to crop; the last dimension comes first
    for wanted, length in zip(crop[::-1], images.shape[:-3:-1], strict=True):
        before = int((wanted - length) / 2)
        padding += [before, wanted - length - before]
    return functional.pad(images, padding)


def _size(size: Any) -> Size | None:
    if isinstance(size, dict) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    return None


def _colour(values: list[float]) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
