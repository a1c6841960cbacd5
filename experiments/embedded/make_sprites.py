"""Rasterise the embedded world's subjects, Noto emoji, into one small atlas, with held-out subjects marked.

Needs Debian's `fonts-noto-color-emoji` (OFL 1.1) and `unicode-data`. Its output is committed.

    python experiments/embedded/make_sprites.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
WORLD = Path(__file__).parents[2] / "src/customized_grpo/embedded"
SIDE = 40  # pixels of one sprite in the atlas
COLUMNS = 20
HELD_OUT = 48

#: Class word of a subject in prompts by Unicode's emoji subgroups. Coarse on purpose: the model could memorise a name
#: that identifies the subject, instead of looking at the reference.
CLASSES = {
    "animal": ["animal-mammal", "animal-reptile", "animal-amphibian", "cat-face", "monkey-face"],
    "bird": ["animal-bird"],
    "fish": ["animal-marine", "food-marine"],
    "insect": ["animal-bug"],
    "plant": ["plant-flower", "plant-other"],
    "fruit": ["food-fruit", "food-vegetable"],
    "meal": ["food-prepared", "food-asian"],
    "cake": ["food-sweet"],
    "drink": ["drink", "dishware"],
    "car": ["transport-ground"],
    "ship": ["transport-water", "transport-air"],
    "toy": ["game", "face-costume", "event", "sport", "person-fantasy", "face-hat"],
    "clothes": ["clothing"],
    "instrument": ["musical-instrument", "sound", "music"],
    "house": ["place-building", "place-religious", "place-other"],
    "thing": ["household", "tool", "light & video", "phone", "computer", "other-object", "award-medal", "lock", "money",
              "mail", "office", "time", "science"],
}  # fmt: skip
#: Scenery, abstract images, text, and what is too thin to be a subject.
UNFIT = re.compile(
    r"o.clock|thirty|fog|night|sunrise|sunset|cityscape|bridge|milky|web|chart|suit$|calendar|hot springs|"
    r"map|wedding|construction|microbe|pager|cross mark|banknote|speaker|bell with|smiling cat|cat with|"
    r"kissing cat|weary|crying cat|pouting|grinning cat|level slider|musical note|feather|wing$|ticket|sparkl|"
    r"tattoo|card|goal net|flag in|martial|window|door|lattice|chains|hook|label|confetti|petri|dna"
)


def main() -> None:
    font = ImageFont.truetype(str(FONT), 109)
    rng = np.random.default_rng(0)
    class_of = {group: word for word, groups in CLASSES.items() for group in groups}
    sprites: list[tuple[str, str, Image.Image]] = []
    subgroup = ""
    for line in NAMES.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        found = re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s+# \S+ E[\d.]+ (.*)$", line)
        if found is None or subgroup not in class_of or UNFIT.search(found[2]):
            continue
        points = [point for point in found[1].split() if point != "FE0F"]
        if len(points) == 1:
            sprite = _rasterise(font, chr(int(points[0], 16)))
            if sprite is not None:
                sprites.append((found[2], class_of[subgroup], sprite))
    held_out = set(rng.choice(len(sprites), HELD_OUT, replace=False).tolist())
    rows = -(-len(sprites) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    index = []
    for position, (name, word, sprite) in enumerate(sprites):
        atlas.paste(sprite, (position % COLUMNS * SIDE, position // COLUMNS * SIDE))
        index.append({"name": name, "class": word, "held_out": position in held_out})
    atlas.save(WORLD / "sprites.png", optimize=True)
    text = "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in index) + "\n]\n"
    (WORLD / "sprites.json").write_text(text, encoding="utf-8")
    print(f"{len(sprites)} sprites, {len(held_out)} held out, {(WORLD / 'sprites.png').stat().st_size / 1e6:.2f} MB")


def _rasterise(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image | None:
    """Return the glyph cropped and fitted into a square sprite; None if it covers too little of it."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), glyph, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        return None
    cut = canvas.crop(box)
    scale = SIDE / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    # Premultiplied, so that the transparent pixels' colour does not bleed into the edge.
    cut = cut.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    sprite = Image.new("RGBA", (SIDE, SIDE))
    sprite.paste(cut, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    filled = (np.asarray(sprite)[..., 3] > 128).mean()
    return sprite if filled > 0.33 else None


if __name__ == "__main__":
    main()
