"""Images of the embedded world: a subject, its accessory, its position and place, and the prompt for them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

from customized_grpo.embedded.places import PLACES, SIDE, paint
from customized_grpo.embedded.subjects import COLOURS, SUBJECT_SIDE, Subject, sprite_image

#: Left edge of a target's subject in pixels, and the words of the prompt for it.
POSITIONS: dict[str, tuple[int, str]] = {
    "left": (0, "on the left"),
    "middle": (16, "in the middle"),
    "right": (32, "on the right"),
}
_TARGET_TOP = 24
_REFERENCE_CORNER = (16, 8)
#: Largest offset of a subject from those corners, equal in both images of a pair: so the distance between them is
#: always a whole number of the policy's 8-pixel tokens, and attention alone can copy a shape.
_STRAY = 2
_UP = 4  # accessories are rendered this much larger, then reduced


@dataclass(frozen=True)
class Attributes:
    """Attributes that a prompt asks for; None for an open one."""

    place: str
    position: str | None = None
    accessory: str | None = None
    colour: str | None = None

    def prompt(self, word: str) -> str:
        """Return the prompt for a class word: "a purple bird wearing a red hat in the snow on the left"."""
        colour = f"{self.colour} " if self.colour else ""
        article = "an" if (colour or word)[0] in "aeiou" else "a"
        worn = f" wearing {ACCESSORIES[self.accessory][0]}" if self.accessory else ""
        where = f" {POSITIONS[self.position][1]}" if self.position else ""
        return f"{article} {colour}{word}{worn} {PLACES[self.place][0]}{where}"

    @property
    def held_out(self) -> bool:
        """True if no training image shows one of the combinations of two attributes (about one in eight)."""
        pairs = combinations(filter(None, (self.place, self.accessory, self.colour)), 2)
        return any(hashlib.sha256(f"{a}+{b}".encode()).digest()[0] < 32 for a, b in pairs)


@dataclass(frozen=True)
class Scene:
    """A rendered image: `image` uint8 (64, 64, 3) and `mask` bool (64, 64), true on the subject."""

    image: np.ndarray
    mask: np.ndarray


def sample_attributes(rng: np.random.Generator, *, held_out: bool, recoloured: bool = False) -> Attributes:
    """Sample attributes, of the held-out combinations or of all others; with `recoloured` always with a colour."""
    while True:
        attributes = Attributes(
            place=str(rng.choice(list(PLACES))),
            position=str(rng.choice(list(POSITIONS))) if rng.random() < 0.7 else None,
            accessory=str(rng.choice(list(ACCESSORIES))) if rng.random() < (0.8 if held_out else 0.5) else None,
            colour=str(rng.choice(list(COLOURS))) if recoloured or rng.random() < (0.6 if held_out else 0.3) else None,
        )
        if attributes.held_out is held_out:
            return attributes


def render_target(
    subject: Subject, attributes: Attributes, rng: np.random.Generator, stray: tuple[int, int] = (0, 0)
) -> Scene:
    """Render the image that the attributes ask for; open ones and the place's details are sampled from `rng`."""
    position = attributes.position or str(rng.choice(list(POSITIONS)))
    corner = (POSITIONS[position][0] + stray[0], _TARGET_TOP + stray[1])
    return _compose(subject, paint(attributes.place, rng), corner, attributes.accessory, attributes.colour)


def render_reference(
    subject: Subject, place: str, rng: np.random.Generator, stray: tuple[int, int] | None = None
) -> Scene:
    """Render a reference image: the subject without accessories, higher up than in any target, in another place."""
    stray = sample_offset(rng) if stray is None else stray
    corner = (_REFERENCE_CORNER[0] + stray[0], _REFERENCE_CORNER[1] + stray[1])
    return _compose(subject, paint(place, rng), corner, None, None)


def sample_offset(rng: np.random.Generator) -> tuple[int, int]:
    """Sample the offset (right, down) in pixels of a pair's subject from its usual corners."""
    return int(rng.integers(-_STRAY, _STRAY + 1)), int(rng.integers(-_STRAY, _STRAY + 1))


def sample_pair(subject: Subject, attributes: Attributes, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Render (reference, target) of one subject; the reference's place is never the target's."""
    other, stray = str(rng.choice([place for place in PLACES if place != attributes.place])), sample_offset(rng)
    return render_reference(subject, other, rng, stray), render_target(subject, attributes, rng, stray)


def _compose(
    subject: Subject, background: np.ndarray, corner: tuple[int, int], accessory: str | None, colour: str | None
) -> Scene:
    layer = np.zeros((SIDE, SIDE, 4), dtype=np.float32)
    sprite = sprite_image(subject, colour)
    left, top = corner
    rows = slice(max(0, top), min(SIDE, top + SUBJECT_SIDE))
    columns = slice(max(0, left), min(SIDE, left + SUBJECT_SIDE))
    layer[rows, columns] = sprite[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    alpha = layer[..., 3:]
    image = background.astype(np.float32) / 255 * (1 - alpha) + layer[..., :3] * alpha
    mask = alpha[..., 0] > 0.5
    if accessory is not None and mask.any():
        worn = _wear(accessory, mask, alpha[..., 0])
        image = image * (1 - worn[..., 3:]) + worn[..., :3] * worn[..., 3:]
    return Scene(np.asarray(np.round(image * 255), dtype=np.uint8), mask)


def _wear(accessory: str, mask: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the accessory as a layer over the image, float32 (64, 64, 4) in [0, 1]."""
    ys, xs = np.nonzero(mask)
    top, bottom = float(ys.min()), float(ys.max() + 1)
    head = xs[ys < top + 0.3 * (bottom - top)]
    canvas = Image.new("RGBA", (SIDE * _UP, SIDE * _UP))
    box = (v * _UP for v in (xs.min(), xs.max() + 1, top, bottom, (head.min() + head.max() + 1) / 2))
    _, on_body, paint = ACCESSORIES[accessory]
    paint(_Body(ImageDraw.Draw(canvas), *box))
    layer = np.asarray(canvas.convert("RGBa").reduce(_UP).convert("RGBA"), dtype=np.float32) / 255
    if on_body:  # clothes end where the subject ends
        layer = layer.copy()
        layer[..., 3] *= alpha
    return layer


@dataclass(frozen=True)
class _Body:
    """Box of the subject's mask and middle of its head, in enlarged pixels; a method for each accessory."""

    paint: ImageDraw.ImageDraw
    left: float
    right: float
    top: float
    bottom: float
    head: float

    def down(self, fraction: float) -> float:
        return self.top + fraction * (self.bottom - self.top)

    def box(self, dx0: float, y0: float, dx1: float, y1: float) -> list[float]:
        """Return a box around the head's middle, in image pixels sideways and enlarged pixels downwards."""
        return [self.head + dx0 * _UP, y0, self.head + dx1 * _UP, y1]

    def red_hat(self) -> None:
        base = self.top + 3 * _UP
        self.paint.pieslice(self.box(-8, base - 9 * _UP, 8, base + 9 * _UP), 180, 360, fill=(216, 24, 32, 255))
        self.paint.rounded_rectangle(self.box(-12, base - 2 * _UP, 12, base + 1 * _UP), 4, fill=(150, 8, 20, 255))

    def santa_hat(self) -> None:
        base = self.top + 3 * _UP
        tip = (self.head + 10 * _UP, base - 13 * _UP)
        self.paint.polygon([(self.head - 8 * _UP, base), tip, (self.head + 8 * _UP, base)], fill=(206, 20, 30, 255))
        self.paint.rounded_rectangle(self.box(-10, base - 3 * _UP, 10, base + 2 * _UP), 10, fill=(250, 250, 250, 255))
        ball = [tip[0] - 3 * _UP, tip[1] - 3 * _UP, tip[0] + 3 * _UP, tip[1] + 3 * _UP]
        self.paint.ellipse(ball, fill=(250, 250, 250, 255))

    def top_hat(self) -> None:
        base = self.top + 3 * _UP
        self.paint.rectangle(self.box(-7, base - 13 * _UP, 7, base), fill=(18, 18, 22, 255))
        self.paint.rectangle(self.box(-7, base - 4 * _UP, 7, base - 2 * _UP), fill=(230, 230, 230, 255))
        self.paint.rounded_rectangle(self.box(-12, base - 2 * _UP, 12, base + 1 * _UP), 4, fill=(18, 18, 22, 255))

    def pink_glasses(self) -> None:
        y = self.down(0.38)
        self.paint.rectangle(self.box(-11, y - 1 * _UP, 11, y + 1 * _UP), fill=(255, 60, 160, 255))
        for side in (-6, 6):
            lens = self.box(side - 5, y - 5 * _UP, side + 5, y + 5 * _UP)
            self.paint.ellipse(lens, fill=(255, 190, 225, 255), outline=(255, 40, 150, 255), width=7)

    def rainbow_scarf(self) -> None:
        colours = [(230, 40, 40), (250, 150, 30), (250, 225, 50), (60, 180, 75), (50, 110, 230), (150, 60, 200)]
        y, height = self.down(0.6), 6 * _UP
        width = (self.right - self.left) / 6
        for i, colour in enumerate(colours):
            self.paint.rectangle(
                [self.left + i * width, y, self.left + (i + 1) * width, y + height], fill=(*colour, 255)
            )
        for i, colour in enumerate(colours):
            top = y + height + i * 1.5 * _UP
            self.paint.rectangle(self.box(3, top, 8, top + 1.5 * _UP), fill=(*colour, 255))

    def yellow_shirt(self) -> None:
        y = self.down(0.58)
        self.paint.rectangle([self.left, y, self.right, self.bottom], fill=(252, 214, 20, 255))
        middle = (self.left + self.right) / 2
        collar = [(middle - 5 * _UP, y), (middle, y + 5 * _UP), (middle + 5 * _UP, y)]
        self.paint.line(collar, fill=(190, 140, 0, 255), width=5)


#: Words for each accessory, whether it is cut to the subject's outline, and its painter.
ACCESSORIES: dict[str, tuple[str, bool, Callable[[_Body], None]]] = {
    "red hat": ("a red hat", False, _Body.red_hat),
    "santa hat": ("a santa hat", False, _Body.santa_hat),
    "top hat": ("a black top hat", False, _Body.top_hat),
    "pink glasses": ("pink glasses", False, _Body.pink_glasses),
    "rainbow scarf": ("a rainbow scarf", False, _Body.rainbow_scarf),
    "yellow shirt": ("a yellow shirt", True, _Body.yellow_shirt),
}
