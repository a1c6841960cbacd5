"""The page's colours in light and dark, as CSS custom properties; figures' colours by the same names.

Text and lines have a contrast of 4.5 or more on the page and on its cards in both.
"""

from __future__ import annotations

from typing import Final

from customized_grpo.figures import canvas

LIGHT: Final = {
    "page": "#F4F5F8",
    "card": "#FFFFFF",
    "sunken": "#EBEEF3",
    "border": "#D8DCE4",
    "ink": "#1C2330",
    "muted": "#5A6170",
    "grid": "#E4E7ED",
    "blue": "#0066A6",
    "vermillion": "#B84A00",
    "green": "#007657",
    "orange": "#8F6000",
    "pink": "#A63F7E",
    "sky": "#007397",
    "grey": "#646A76",
    "alarm": "#FFF3E2",
    "calm": "#E7F5EF",
}
DARK: Final = {
    "page": "#10141B",
    "card": "#1A1F29",
    "sunken": "#232A36",
    "border": "#38414F",
    "ink": "#E8EBF0",
    "muted": "#A9B1BF",
    "grid": "#2D3543",
    "blue": "#6CB8F5",
    "vermillion": "#FF9A66",
    "green": "#45D0A0",
    "orange": "#F0B840",
    "pink": "#EAA0CC",
    "sky": "#7FD8F5",
    "grey": "#A2AAB8",
    "alarm": "#3A2C14",
    "calm": "#14332A",
}

#: What a figure's colour is called on the page, where it is a line or a word.
LINES: Final = {
    canvas.INK: "ink",
    "#FFFFFF": "card",
    "#E6E6E6": "grid",
    "#000000": "ink",
    canvas.BLUE: "blue",
    canvas.VERMILLION: "vermillion",
    canvas.GREEN: "green",
    canvas.ORANGE: "orange",
    canvas.PINK: "pink",
    canvas.SKY: "sky",
    canvas.GREY: "grey",
}

#: Colours that stay as they are on both: areas, and the words on them.
FIXED: Final = {
    canvas.BLUE,
    canvas.VERMILLION,
    canvas.GREEN,
    canvas.ORANGE,
    canvas.PINK,
    canvas.SKY,
    canvas.GREY,
    canvas.SILENT,
    canvas.ON_AREA,
}


def declarations(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
