"""Pictures that clients have sent, so that a reference travels once."""

from __future__ import annotations

import threading
from collections import OrderedDict

from PIL import Image


class PictureStore:
    """Pictures by digest, of at most `size` bytes of pixels; the longest unused go first. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> Image.Image | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name: str, image: Image.Image) -> None:
        with self._lock:
            if name in self._kept:
                return
            self._kept[name] = image
            self._held += _bytes(image)
            while self._held > self._size:
                self._held -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())
