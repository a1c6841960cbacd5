"""The embedded world's subjects: small sprites, recoloured, flipped, turned and stretched into many identities."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image

SPRITE_SIDE = 40  #: pixels of one sprite in the atlas
SUBJECT_SIDE = 32  #: pixels of the box that a subject fills in an image
_COLUMNS = 20


@dataclass(frozen=True)
class Subject:
    """One identity: a sprite and its variation."""

    sprite: int
    hue: float = 0.0  # turns round the colour circle
    flip: bool = False
    angle: float = 0.0  # degrees
    stretch: float = 1.0  # width over height, relative to the sprite's own

    @property
    def word(self) -> str:
        """Class word in prompts."""
        return str(_index()[self.sprite]["class"])

    @property
    def name(self) -> str:
        """Name of the sprite, as prompts use it."""
        return str(_index()[self.sprite]["name"])


def sprites(*, held_out: bool) -> list[int]:
    """Return the sprites that are held out of training, or all others."""
    return [i for i, entry in enumerate(_index()) if entry["held_out"] is held_out]


def sample_subject(rng: np.random.Generator, *, held_out: bool) -> Subject:
    """Sample an identity: any sprite of the split, usually recoloured, turned by up to 20 degrees."""
    pool = sprites(held_out=held_out)
    return Subject(
        sprite=int(pool[int(rng.integers(len(pool)))]),
        hue=float(rng.uniform(0.08, 0.92)) if rng.random() < 0.6 else 0.0,
        flip=bool(rng.random() < 0.5),
        angle=float(rng.uniform(-20, 20)) if rng.random() < 0.5 else 0.0,
        stretch=float(rng.uniform(0.85, 1.15)) if rng.random() < 0.5 else 1.0,
    )


def sprite_image(subject: Subject, colour: str | None = None) -> np.ndarray:
    """Render the subject alone, float32 (32, 32, 4) in [0, 1], not premultiplied; `colour` replaces its own hue."""
    pixels = _atlas()[subject.sprite]
    image = Image.fromarray(pixels, "RGBA").convert("RGBa")
    if subject.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = (1.0, 1.0 / subject.stretch) if subject.stretch > 1 else (subject.stretch, 1.0)
    size = (round(SPRITE_SIDE * width), round(SPRITE_SIDE * height))
    canvas = Image.new("RGBa", (SPRITE_SIDE, SPRITE_SIDE))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(resized, ((SPRITE_SIDE - size[0]) // 2, (SPRITE_SIDE - size[1]) // 2))
    if subject.angle:
        # Turned inside its box: a little smaller, so that no corner is cut off.
        inner = round(SPRITE_SIDE * 0.86)
        small = canvas.resize((inner, inner), Image.Resampling.BICUBIC)
        canvas = Image.new("RGBa", (SPRITE_SIDE, SPRITE_SIDE))
        canvas.paste(small, ((SPRITE_SIDE - inner) // 2,) * 2)
        canvas = canvas.rotate(subject.angle, Image.Resampling.BICUBIC)
    canvas = canvas.resize((SUBJECT_SIDE, SUBJECT_SIDE), Image.Resampling.LANCZOS)
    rgba = np.asarray(canvas.convert("RGBA"), dtype=np.float32) / 255
    rgb = rgba[..., :3]
    if subject.hue:
        rgb = _rotate_hue(rgb, subject.hue)
    if colour is not None:
        rgb = _tint(rgb, COLOURS[colour])
    return np.concatenate([rgb, rgba[..., 3:]], axis=-1)


#: Colours that a prompt may ask for, as hues (fractions of the colour circle).
COLOURS: dict[str, float] = {"red": 0.0, "yellow": 0.145, "green": 0.34, "blue": 0.61, "purple": 0.79}


def _rotate_hue(rgb: np.ndarray, turns: float) -> np.ndarray:
    """Rotate colours about the grey axis: the order of brightness stays, so that the sprite is readable."""
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    third, root = 1 / 3, np.sqrt(1 / 3)
    diagonal, rest = cos + third * (1 - cos), third * (1 - cos)
    plus, minus = rest + root * sin, rest - root * sin
    turn = np.array([[diagonal, minus, plus], [plus, diagonal, minus], [minus, plus, diagonal]], dtype=np.float32)
    return np.asarray(np.clip(rgb @ turn.T, 0, 1), dtype=np.float32)


def _tint(rgb: np.ndarray, hue: float) -> np.ndarray:
    """Give every pixel one hue and keep its brightness: dark parts stay dark, white becomes a light tint."""
    pure = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1).astype(np.float32)
    value = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    value = value[..., None]
    dark, light = pure * (0.25 + 1.1 * value), pure + (1 - pure) * (value - 0.62) * 1.6
    return np.asarray(np.clip(np.where(value < 0.62, dark, np.maximum(dark, light)), 0, 1), dtype=np.float32)


@cache
def _index() -> list[dict[str, object]]:
    text = files(__package__).joinpath("sprites.json").read_text(encoding="utf-8")
    return list(json.loads(text))


@cache
def _atlas() -> np.ndarray:
    with files(__package__).joinpath("sprites.png").open("rb") as file:
        atlas = np.asarray(Image.open(file).convert("RGBA"))
    rows = atlas.shape[0] // SPRITE_SIDE
    cells = atlas.reshape(rows, SPRITE_SIDE, _COLUMNS, SPRITE_SIDE, 4).swapaxes(1, 2)
    return np.ascontiguousarray(cells.reshape(-1, SPRITE_SIDE, SPRITE_SIDE, 4)[: len(_index())])
