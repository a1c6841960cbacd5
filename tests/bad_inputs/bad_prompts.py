"""Prompts, as they come from a command line and, in `bad_datasets`, from files; read by a real text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bad_cases import Case, Command, photo
from PIL import Image

LONG = "a cat wearing a red hat in the snow, " * 280  # more than 10,000 characters


def _scored(prompt: str) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        judge = ["--reward", "clip", "--path", "embedded/judge-prompt", "--role", "prompt"]
        return [["score", *judge, "--image", photo(folder), "--prompt", prompt]]

    return make


def _drawn(prompt: str) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        return [["generate", "--reference", photo(folder), "--prompt", prompt, "--steps", "1", "--out", "out.png"]]

    return make


def _has_score(folder: Path, printed: str) -> None:
    (row,) = [line for line in printed.splitlines() if "good.png" in line]
    assert -100 <= float(row.split("│")[2]) <= 100, row


def _is_picture(folder: Path, printed: str) -> None:
    with Image.open(folder / "out.png") as picture:
        assert picture.size == (64, 64)
        assert len(set(picture.convert("L").tobytes())) > 10, "no flat picture"


EMPTY = {"nothing": "", "spaces": "   ", "line breaks alone": "\n\r\n", "a tab": "\t", "no-break spaces": "\xa0\u2003",
         "a zero-width space": "\u200b", "marks of direction": "\u200e\u202e", "a mark of byte order": "\ufeff",
         "control characters alone": "\x01\x02\x1b"}  # fmt: skip
USED = {
    "10,000 characters": LONG,
    "10,000 of one letter": "a" * 10_000,
    "100,000 characters": "cat " * 25_000,
    "control characters": "a\x01\x07\x1b[2J\x7f cat",
    "line breaks": "a cat\nin the\r\nsnow",
    "emoji": "🐈‍⬛ in the ❄️, 👩🏽‍🚀 🇩🇪",
    "emoji alone": "🐱",
    "right to left": "قطة ترتدي قبعة حمراء في الثلج",
    "both directions": "a \u202etac\u202c חתול cat",
    "Chinese": "一只戴着红帽子的猫在雪地里",
    "combining marks": "c\u0301a\u0300t" + "\u0301" * 500,
    "letters beyond the first plane": "𝓬𝓪𝓽 𠀀",
    "an unassigned letter": "cat \U0003fffe",
    "private letters": "\ue000\U000f0000",
    "one letter": "a",
    "punctuation": "?!.,;:'\"\\/",
    "the encoders' own tokens": "<|endoftext|> <|startoftext|> </s> <pad> <unk> <image>",
    "markup of rich": "[red]cat[/red] [/nothing]",
    "HTML": "<script>alert(1)</script> &amp; cat",
    "a format": "{prompt} {0} %s %(x)d",
    "a shell's command": "$(touch evil) `touch evil` ; touch evil",
    "a path": "../../etc/passwd",
    "an option": "--help",
}


def cases() -> Iterator[Case]:
    for name, prompt in EMPTY.items():
        for make in (_scored, _drawn):
            yield Case("prompt", f"{name}, {make.__name__[1:]}", make(prompt), (("--prompt is empty; say what",),))
    for make in (_scored, _drawn):
        yield Case(
            "prompt", f"bytes that are no UTF-8, {make.__name__[1:]}", make("cat \udcff"), (("--prompt holds half",),)
        )
    for name, prompt in USED.items():
        yield Case("prompt", f"{name}, scored", _scored(prompt), (), _has_score)
    for name in ("10,000 characters", "control characters", "emoji", "right to left", "the encoders' own tokens"):
        yield Case("prompt", f"{name}, drawn", _drawn(USED[name]), (), _is_picture)


CASES = list(cases())
