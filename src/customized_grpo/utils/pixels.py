"""Conversion between PIL images and tensors."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.utils.records import write_bytes


def to_tensor(image: Image.Image) -> Tensor:
    """Convert a PIL image to float32 (3, H, W) in [0, 1], or (1, H, W) for mode L."""
    array = np.array(image, dtype=np.float32) / 255
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """Convert a tensor (3, H, W) in [0, 1] to an 8-bit PIL image."""
    rounded = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(rounded.permute(1, 2, 0).cpu().numpy())


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Return the content of an image file; `options` are those of Pillow's `save`."""
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image file in one move, in the format of its suffix."""
    write_bytes(path, encoded(image, Image.registered_extensions()[path.suffix.lower()]))
