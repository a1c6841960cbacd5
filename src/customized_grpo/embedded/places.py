"""The embedded world's places: one short procedural painter each, every call a new picture of the same place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  #: pixels of a finished picture
_UP = 2  # painted this much larger, then reduced, which softens the edges
_S = SIDE * _UP

Colour = tuple[int, int, int]
Random = np.random.Generator
Painter = Callable[[ImageDraw.ImageDraw, Random], None]


def paint(place: str, rng: Random) -> np.ndarray:
    """A picture of `place`, uint8 (64, 64, 3). Raises KeyError for a place that `PLACES` does not name."""
    image = Image.new("RGB", (_S, _S))
    PLACES[place][1](ImageDraw.Draw(image), rng)
    return np.asarray(image.reduce(_UP))


def _vary(colour: Colour, rng: Random, spread: int = 14) -> Colour:
    red, green, blue = (int(np.clip(c + rng.integers(-spread, spread + 1), 0, 255)) for c in colour)
    return red, green, blue


def _gradient(draw: ImageDraw.ImageDraw, top: Colour, bottom: Colour, y0: int, y1: int) -> None:
    for y in range(y0, y1):
        mix = (y - y0) / max(1, y1 - y0 - 1)
        fill = tuple(round(a + (b - a) * mix) for a, b in zip(top, bottom, strict=True))
        draw.line([(0, y), (_S, y)], fill=fill)


def _sky(draw: ImageDraw.ImageDraw, rng: Random, horizon: int, top: Colour = (110, 175, 240)) -> None:
    _gradient(draw, _vary(top, rng), _vary((205, 230, 250), rng, 8), 0, horizon)


def _ground(draw: ImageDraw.ImageDraw, rng: Random, colour: Colour, horizon: int, specks: int = 60) -> None:
    colour = _vary(colour, rng)
    draw.rectangle([0, horizon, _S, _S], fill=colour)
    for x, y in zip(rng.integers(0, _S, specks), rng.integers(horizon, _S, specks), strict=True):
        draw.ellipse([x, y, x + 3, y + 2], fill=_vary(colour, rng, 18))


def _blobs(draw: ImageDraw.ImageDraw, rng: Random, colours: list[Colour], n: int, y0: int, y1: int, r: int) -> None:
    for x, y in zip(rng.integers(-r, _S + r, n), rng.integers(y0, y1, n), strict=True):
        size = int(rng.integers(r // 2 + 1, r + 1))
        colour = _vary(colours[int(rng.integers(len(colours)))], rng)
        draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)


def _trunk(draw: ImageDraw.ImageDraw, rng: Random, x: int, top: int, bottom: int, width: int) -> None:
    draw.rectangle([x, top, x + width, bottom], fill=_vary((96, 66, 40), rng))


def _jungle(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    draw.rectangle([0, 0, _S, _S], fill=_vary((16, 70, 30), rng))
    _blobs(draw, rng, [(20, 96, 40), (34, 128, 50), (12, 60, 28)], 50, 0, _S, 16)
    for x in rng.integers(0, _S, 9):
        reach, y = int(rng.integers(12, 30)), int(rng.integers(20, _S))
        leaf = [
            (x, y),
            (x + reach // 2, y - 6),
            (x + reach, y - reach // 3),
            (x + reach // 2, y + 5),
        ]
        draw.polygon([(int(a), int(b)) for a, b in leaf], fill=_vary((70, 170, 60), rng))


def _snow(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    horizon = int(rng.integers(48, 66))
    _gradient(draw, _vary((165, 185, 205), rng), (215, 225, 235), 0, horizon)
    for x in rng.integers(0, _S, 4):
        tip = horizon - int(rng.integers(22, 40))
        draw.polygon(
            [(int(x) - 10, horizon), (int(x), tip), (int(x) + 10, horizon)],
            fill=_vary((88, 120, 116), rng),
        )
    _ground(draw, rng, (238, 243, 250), horizon, 20)
    for x, y in rng.integers(0, _S, (40, 2)):
        draw.ellipse([int(x), int(y), int(x) + 3, int(y) + 3], fill=(255, 255, 255))


def _beach(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    horizon = int(rng.integers(36, 50))
    shore = horizon + int(rng.integers(18, 28))
    _sky(draw, rng, horizon)
    _gradient(draw, _vary((30, 120, 190), rng), (90, 190, 210), horizon, shore)
    _ground(draw, rng, (236, 208, 146), shore, 70)
    draw.line([(0, shore), (_S, shore + int(rng.integers(-3, 4)))], fill=(250, 250, 245), width=4)


def _cobblestone(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    draw.rectangle([0, 0, _S, _S], fill=(70, 70, 74))
    size, shift = int(rng.integers(14, 18)), int(rng.integers(0, 14))
    for row, y in enumerate(range(-shift, _S, size)):
        for x in range(-shift - (row % 2) * size // 2, _S, size):
            draw.rounded_rectangle([x + 1, y + 1, x + size - 2, y + size - 2], 4, fill=_vary((138, 134, 130), rng, 20))


def _fabric(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    base = _vary((242, 150, 188), rng)
    draw.rectangle([0, 0, _S, _S], fill=base)
    slope = float(rng.uniform(0.3, 1.2))
    for start in range(-_S, _S, int(rng.integers(16, 24))):
        darker = tuple(max(0, c - 26) for c in base)
        draw.line([(start, 0), (start + slope * _S, _S)], fill=darker, width=int(rng.integers(4, 9)))


def _wooden_floor(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    width = int(rng.integers(15, 21))
    for y in range(-int(rng.integers(0, width)), _S, width):
        draw.rectangle([0, y, _S, y + width - 2], fill=_vary((176, 118, 66), rng, 16))
        draw.line([(0, y + width - 1), (_S, y + width - 1)], fill=(92, 56, 28), width=2)
        joint = int(rng.integers(0, _S))
        draw.line([(joint, y), (joint, y + width)], fill=(92, 56, 28), width=2)


def _city(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    _sky(draw, rng, 92, (150, 170, 200))
    x = -int(rng.integers(0, 12))
    while x < _S:
        width, top = int(rng.integers(14, 26)), int(rng.integers(12, 50))
        draw.rectangle([x, top, x + width - 2, 96], fill=_vary((92, 98, 118), rng, 20))
        for wx in range(x + 3, x + width - 5, 6):
            for wy in range(top + 4, 90, 8):
                if rng.random() < 0.7:
                    draw.rectangle([wx, wy, wx + 2, wy + 3], fill=(250, 226, 140))
        x += width
    _ground(draw, rng, (100, 100, 104), 94, 20)


def _mountain(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    _sky(draw, rng, 84)
    for _ in range(3):
        x, top = int(rng.integers(0, _S)), int(rng.integers(12, 40))
        wide = int(rng.integers(40, 64))
        draw.polygon([(x - wide, 86), (x, top), (x + wide, 86)], fill=_vary((112, 104, 116), rng))
        cap = wide * 14 // (86 - top)
        draw.polygon([(x - cap, top + 14), (x, top), (x + cap, top + 14)], fill=(246, 248, 252))
    _ground(draw, rng, (108, 152, 84), 84, 40)


def _blue_house(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    _sky(draw, rng, 90, (170, 205, 235))
    x, width = int(rng.integers(14, 40)), int(rng.integers(56, 70))
    draw.rectangle([x, 36, x + width, 92], fill=_vary((44, 84, 190), rng))
    draw.polygon([(x - 8, 38), (x + width // 2, 8), (x + width + 8, 38)], fill=_vary((150, 60, 50), rng))
    for wx in (x + 8, x + width - 22):
        draw.rectangle([wx, 48, wx + 14, 62], fill=(250, 240, 190))
    _ground(draw, rng, (104, 170, 80), 90, 40)


def _rug_forest(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    draw.rectangle([0, 0, _S, _S], fill=_vary((46, 84, 54), rng))
    for x in rng.integers(0, _S, 8):
        _trunk(draw, rng, int(x), 0, 72, int(rng.integers(5, 10)))
    _ground(draw, rng, (86, 100, 56), 68, 40)
    left, top = int(rng.integers(2, 12)), int(rng.integers(78, 88))
    draw.rounded_rectangle([left, top, _S - left, _S - 4], 8, fill=_vary((128, 52, 160), rng))
    draw.rounded_rectangle([left + 6, top + 6, _S - left - 6, _S - 10], 6, outline=(210, 160, 225), width=3)


def _wheat(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    horizon = int(rng.integers(40, 56))
    _sky(draw, rng, horizon)
    draw.rectangle([0, horizon, _S, _S], fill=_vary((214, 172, 70), rng))
    for x, y in zip(rng.integers(0, _S, 150), rng.integers(horizon, _S, 150), strict=True):
        draw.line(
            [(int(x), int(y)), (int(x) + int(rng.integers(-3, 4)), int(y) - 12)],
            fill=_vary((190, 140, 40), rng, 26),
        )


def _autumn(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    _sky(draw, rng, 84, (190, 215, 230))
    _ground(draw, rng, (150, 110, 60), 82, 20)
    x = int(rng.integers(16, 96))
    _trunk(draw, rng, x, 40, 92, 12)
    leaves: list[Colour] = [(222, 110, 30), (238, 160, 40), (196, 60, 34)]
    for px, py in zip(rng.normal(x + 6, 22, 40), rng.normal(26, 12, 40), strict=True):
        size = int(rng.integers(5, 11))
        box = [int(px) - size, int(py) - size, int(px) + size, int(py) + size]
        draw.ellipse(box, fill=_vary(leaves[int(rng.integers(3))], rng))
    _blobs(draw, rng, leaves, 40, 86, _S, 4)


def _water(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    _gradient(draw, _vary((20, 96, 160), rng), _vary((50, 150, 205), rng), 0, _S)
    for x, y in zip(rng.integers(0, _S, 30), rng.integers(0, _S, 30), strict=True):
        width = int(rng.integers(10, 26))
        draw.arc([int(x), int(y), int(x) + width, int(y) + 7], 180, 360, fill=(170, 220, 240), width=2)


def _sunflowers(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    _sky(draw, rng, 34)
    _ground(draw, rng, (86, 168, 64), 32, 80)
    for x, y in zip(rng.integers(0, _S, 14), rng.integers(40, _S, 14), strict=True):
        px, py, size = int(x), int(y), int(rng.integers(7, 11))
        draw.ellipse([px - size, py - size, px + size, py + size], fill=_vary((250, 204, 30), rng))
        draw.ellipse([px - size // 2, py - size // 2, px + size // 2, py + size // 2], fill=(96, 58, 22))


def _dirt_road(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    horizon = int(rng.integers(34, 46))
    _sky(draw, rng, horizon)
    _ground(draw, rng, (120, 150, 76), horizon, 40)
    vanish = int(rng.integers(48, 80))
    road = [(vanish - 5, horizon), (vanish + 5, horizon), (_S + 10, _S), (-10, _S)]
    draw.polygon(road, fill=_vary((156, 116, 78), rng))
    for x, y in zip(rng.integers(20, 108, 30), rng.integers(90, _S, 30), strict=True):
        draw.ellipse([int(x), int(y), int(x) + 4, int(y) + 3], fill=_vary((128, 92, 60), rng))


def _night(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    _gradient(draw, _vary((8, 10, 40), rng, 6), _vary((44, 40, 96), rng), 0, 100)
    for x, y in zip(rng.integers(0, _S, 45), rng.integers(0, 96, 45), strict=True):
        size = int(rng.integers(1, 4))
        draw.ellipse([int(x), int(y), int(x) + size, int(y) + size], fill=(255, 250, 220))
    moon = int(rng.integers(10, 100))
    draw.ellipse([moon, 8, moon + 20, 28], fill=(246, 240, 200))
    _ground(draw, rng, (24, 34, 40), 100, 20)


#: What a prompt says of each place, in DreamBench's own words where it has them, and its painter.
PLACES: dict[str, tuple[str, Painter]] = {
    "jungle": ("in the jungle", _jungle),
    "snow": ("in the snow", _snow),
    "beach": ("on the beach", _beach),
    "cobblestone": ("on a cobblestone street", _cobblestone),
    "fabric": ("on top of pink fabric", _fabric),
    "wooden floor": ("on top of a wooden floor", _wooden_floor),
    "city": ("with a city in the background", _city),
    "mountain": ("with a mountain in the background", _mountain),
    "blue house": ("with a blue house in the background", _blue_house),
    "purple rug": ("on top of a purple rug in a forest", _rug_forest),
    "wheat field": ("with a wheat field in the background", _wheat),
    "autumn tree": ("with a tree and autumn leaves in the background", _autumn),
    "water": ("floating on top of water", _water),
    "sunflowers": ("on top of green grass with sunflowers around it", _sunflowers),
    "dirt road": ("on top of a dirt road", _dirt_road),
    "night": ("under a starry night sky", _night),
}
