"""Places of the embedded world, painted procedurally: every call gives a new image of the same place."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  #: pixels of a finished image
_UP = 2  # painted this much larger, then reduced, which softens the edges
_S = SIDE * _UP

Colour = tuple[int, int, int]
_LEAVES: list[Colour] = [(222, 110, 30), (238, 160, 40), (196, 60, 34)]


def paint(place: str, rng: np.random.Generator) -> np.ndarray:
    """Return an image of `place`, uint8 (64, 64, 3). Raises KeyError for a place that `PLACES` does not name."""
    image = Image.new("RGB", (_S, _S))
    PLACES[place][1](_Painter(image, rng))
    return np.asarray(image.reduce(_UP))


class _Painter:
    """A method for each place. The order of random numbers matters: the shipped weights were trained on the images."""

    def __init__(self, image: Image.Image, rng: np.random.Generator) -> None:
        self.draw, self.rng = ImageDraw.Draw(image), rng

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def points(self, count: int, x: tuple[int, int], y: tuple[int, int]) -> Iterator[tuple[int, int]]:
        xs, ys = self.rng.integers(*x, count).tolist(), self.rng.integers(*y, count).tolist()
        return zip(xs, ys, strict=True)

    def vary(self, colour: Colour, spread: int = 14) -> Colour:
        red, green, blue = (int(np.clip(c + self.rng.integers(-spread, spread + 1), 0, 255)) for c in colour)
        return red, green, blue

    def rectangle(self, x0: int, y0: int, x1: int, y1: int, colour: Colour) -> None:
        self.draw.rectangle([x0, y0, x1, y1], fill=colour)

    def polygon(self, colour: Colour, *points: tuple[int, int]) -> None:
        self.draw.polygon(points, fill=colour)

    def dot(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        self.draw.ellipse([x, y, x + width, y + height], fill=colour)

    def disc(self, x: int, y: int, radius: int, colour: Colour) -> None:
        self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)

    def gradient(self, top: Colour, bottom: Colour, y0: int, y1: int) -> None:
        for y in range(y0, y1):
            mix = (y - y0) / max(1, y1 - y0 - 1)
            fill = tuple(round(a + (b - a) * mix) for a, b in zip(top, bottom, strict=True))
            self.draw.line([(0, y), (_S, y)], fill=fill)

    def sky(self, horizon: int, top: Colour = (110, 175, 240)) -> None:
        self.gradient(self.vary(top), self.vary((205, 230, 250), 8), 0, horizon)

    def ground(self, colour: Colour, horizon: int, specks: int = 60) -> None:
        colour = self.vary(colour)
        self.rectangle(0, horizon, _S, _S, colour)
        for x, y in self.points(specks, (0, _S), (horizon, _S)):
            self.dot(x, y, 3, 2, self.vary(colour, 18))

    def blobs(self, colours: list[Colour], count: int, y0: int, radius: int) -> None:
        for x, y in self.points(count, (-radius, _S + radius), (y0, _S)):
            size = self.number(radius // 2 + 1, radius + 1)
            self.disc(x, y, size, self.vary(colours[self.number(0, len(colours))]))

    def jungle(self) -> None:
        self.rectangle(0, 0, _S, _S, self.vary((16, 70, 30)))
        self.blobs([(20, 96, 40), (34, 128, 50), (12, 60, 28)], 50, 0, 16)
        for x in self.rng.integers(0, _S, 9).tolist():
            reach, y = self.number(12, 30), self.number(20, _S)
            leaf = [(x, y), (x + reach // 2, y - 6), (x + reach, y - reach // 3), (x + reach // 2, y + 5)]
            self.polygon(self.vary((70, 170, 60)), *leaf)

    def snow(self) -> None:
        horizon = self.number(48, 66)
        self.gradient(self.vary((165, 185, 205)), (215, 225, 235), 0, horizon)
        for x in self.rng.integers(0, _S, 4).tolist():
            tip = horizon - self.number(22, 40)
            self.polygon(self.vary((88, 120, 116)), (x - 10, horizon), (x, tip), (x + 10, horizon))
        self.ground((238, 243, 250), horizon, 20)
        for x, y in self.rng.integers(0, _S, (40, 2)).tolist():
            self.dot(x, y, 3, 3, (255, 255, 255))

    def beach(self) -> None:
        horizon = self.number(36, 50)
        shore = horizon + self.number(18, 28)
        self.sky(horizon)
        self.gradient(self.vary((30, 120, 190)), (90, 190, 210), horizon, shore)
        self.ground((236, 208, 146), shore, 70)
        self.draw.line([(0, shore), (_S, shore + self.number(-3, 4))], fill=(250, 250, 245), width=4)

    def cobblestone(self) -> None:
        self.rectangle(0, 0, _S, _S, (70, 70, 74))
        size, shift = self.number(14, 18), self.number(0, 14)
        for row, y in enumerate(range(-shift, _S, size)):
            for x in range(-shift - (row % 2) * size // 2, _S, size):
                stone = [x + 1, y + 1, x + size - 2, y + size - 2]
                self.draw.rounded_rectangle(stone, 4, fill=self.vary((138, 134, 130), 20))

    def fabric(self) -> None:
        base = self.vary((242, 150, 188))
        self.rectangle(0, 0, _S, _S, base)
        slope = float(self.rng.uniform(0.3, 1.2))
        darker = tuple(max(0, c - 26) for c in base)
        for start in range(-_S, _S, self.number(16, 24)):
            self.draw.line([(start, 0), (start + slope * _S, _S)], fill=darker, width=self.number(4, 9))

    def wooden_floor(self) -> None:
        width = self.number(15, 21)
        for y in range(-self.number(0, width), _S, width):
            self.rectangle(0, y, _S, y + width - 2, self.vary((176, 118, 66), 16))
            self.draw.line([(0, y + width - 1), (_S, y + width - 1)], fill=(92, 56, 28), width=2)
            joint = self.number(0, _S)
            self.draw.line([(joint, y), (joint, y + width)], fill=(92, 56, 28), width=2)

    def city(self) -> None:
        self.sky(92, (150, 170, 200))
        x = -self.number(0, 12)
        while x < _S:
            width, top = self.number(14, 26), self.number(12, 50)
            self.rectangle(x, top, x + width - 2, 96, self.vary((92, 98, 118), 20))
            for wx in range(x + 3, x + width - 5, 6):
                for wy in range(top + 4, 90, 8):
                    if self.rng.random() < 0.7:
                        self.rectangle(wx, wy, wx + 2, wy + 3, (250, 226, 140))
            x += width
        self.ground((100, 100, 104), 94, 20)

    def mountain(self) -> None:
        self.sky(84)
        for _ in range(3):
            x, top, wide = self.number(0, _S), self.number(12, 40), self.number(40, 64)
            self.polygon(self.vary((112, 104, 116)), (x - wide, 86), (x, top), (x + wide, 86))
            cap = wide * 14 // (86 - top)
            self.polygon((246, 248, 252), (x - cap, top + 14), (x, top), (x + cap, top + 14))
        self.ground((108, 152, 84), 84, 40)

    def blue_house(self) -> None:
        self.sky(90, (170, 205, 235))
        x, width = self.number(14, 40), self.number(56, 70)
        self.rectangle(x, 36, x + width, 92, self.vary((44, 84, 190)))
        self.polygon(self.vary((150, 60, 50)), (x - 8, 38), (x + width // 2, 8), (x + width + 8, 38))
        for wx in (x + 8, x + width - 22):
            self.rectangle(wx, 48, wx + 14, 62, (250, 240, 190))
        self.ground((104, 170, 80), 90, 40)

    def rug_forest(self) -> None:
        self.rectangle(0, 0, _S, _S, self.vary((46, 84, 54)))
        for x in self.rng.integers(0, _S, 8).tolist():
            self.rectangle(x, 0, x + self.number(5, 10), 72, self.vary((96, 66, 40)))
        self.ground((86, 100, 56), 68, 40)
        left, top = self.number(2, 12), self.number(78, 88)
        self.draw.rounded_rectangle([left, top, _S - left, _S - 4], 8, fill=self.vary((128, 52, 160)))
        inner = [left + 6, top + 6, _S - left - 6, _S - 10]
        self.draw.rounded_rectangle(inner, 6, outline=(210, 160, 225), width=3)

    def wheat(self) -> None:
        horizon = self.number(40, 56)
        self.sky(horizon)
        self.rectangle(0, horizon, _S, _S, self.vary((214, 172, 70)))
        for x, y in self.points(150, (0, _S), (horizon, _S)):
            top = (x + self.number(-3, 4), y - 12)
            self.draw.line([(x, y), top], fill=self.vary((190, 140, 40), 26))

    def autumn(self) -> None:
        self.sky(84, (190, 215, 230))
        self.ground((150, 110, 60), 82, 20)
        x = self.number(16, 96)
        self.rectangle(x, 40, x + 12, 92, self.vary((96, 66, 40)))
        for px, py in zip(self.rng.normal(x + 6, 22, 40), self.rng.normal(26, 12, 40), strict=True):
            self.disc(int(px), int(py), self.number(5, 11), self.vary(_LEAVES[self.number(0, 3)]))
        self.blobs(_LEAVES, 40, 86, 4)

    def water(self) -> None:
        self.gradient(self.vary((20, 96, 160)), self.vary((50, 150, 205)), 0, _S)
        for x, y in self.points(30, (0, _S), (0, _S)):
            self.draw.arc([x, y, x + self.number(10, 26), y + 7], 180, 360, fill=(170, 220, 240), width=2)

    def sunflowers(self) -> None:
        self.sky(34)
        self.ground((86, 168, 64), 32, 80)
        for x, y in self.points(14, (0, _S), (40, _S)):
            size = self.number(7, 11)
            self.disc(x, y, size, self.vary((250, 204, 30)))
            self.disc(x, y, size // 2, (96, 58, 22))

    def dirt_road(self) -> None:
        horizon = self.number(34, 46)
        self.sky(horizon)
        self.ground((120, 150, 76), horizon, 40)
        vanish = self.number(48, 80)
        self.polygon(self.vary((156, 116, 78)), (vanish - 5, horizon), (vanish + 5, horizon), (_S + 10, _S), (-10, _S))
        for x, y in self.points(30, (20, 108), (90, _S)):
            self.dot(x, y, 4, 3, self.vary((128, 92, 60)))

    def night(self) -> None:
        self.gradient(self.vary((8, 10, 40), 6), self.vary((44, 40, 96)), 0, 100)
        for x, y in self.points(45, (0, _S), (0, 96)):
            size = self.number(1, 4)
            self.dot(x, y, size, size, (255, 250, 220))
        self.dot(self.number(10, 100), 8, 20, 20, (246, 240, 200))
        self.ground((24, 34, 40), 100, 20)


#: Each place's words in a prompt, DreamBench's own if it has them, and its painter.
PLACES: dict[str, tuple[str, Callable[[_Painter], None]]] = {
    "jungle": ("in the jungle", _Painter.jungle),
    "snow": ("in the snow", _Painter.snow),
    "beach": ("on the beach", _Painter.beach),
    "cobblestone": ("on a cobblestone street", _Painter.cobblestone),
    "fabric": ("on top of pink fabric", _Painter.fabric),
    "wooden floor": ("on top of a wooden floor", _Painter.wooden_floor),
    "city": ("with a city in the background", _Painter.city),
    "mountain": ("with a mountain in the background", _Painter.mountain),
    "blue house": ("with a blue house in the background", _Painter.blue_house),
    "purple rug": ("on top of a purple rug in a forest", _Painter.rug_forest),
    "wheat field": ("with a wheat field in the background", _Painter.wheat),
    "autumn tree": ("with a tree and autumn leaves in the background", _Painter.autumn),
    "water": ("floating on top of water", _Painter.water),
    "sunflowers": ("on top of green grass with sunflowers around it", _Painter.sunflowers),
    "dirt road": ("on top of a dirt road", _Painter.dirt_road),
    "night": ("under a starry night sky", _Painter.night),
}
