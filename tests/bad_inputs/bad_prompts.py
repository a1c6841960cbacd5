"""Prompts from a command line, read by a real text encoder; those of files are in `bad_datasets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bad_cases import Case, Command, photo
from PIL import Image

LONG = "a cat wearing a red hat in the snow, " * 280  # more than 10,000 characters


def _scored(prompt: str) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        reward = ["--reward", "clip", "--path", "embedded/monitor-prompt", "--role", "prompt"]
        return [["score", *reward, "--image", photo(folder), "--prompt", prompt]]

    return make


def _generated(prompt: str) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        return [["generate", "--reference", photo(folder), "--prompt", prompt, "--steps", "1", "--out", "out.png"]]

    return make


def _has_score(folder: Path, printed: str) -> None:
    (row,) = [line for line in printed.splitlines() if "good.png" in line]
    assert -100 <= float(row.split("│")[2]) <= 100, row


def _is_image(folder: Path, printed: str) -> None:
    with Image.open(folder / "out.png") as image:
        assert image.size == (64, 64)
        assert len(set(image.convert("L").tobytes())) > 10, "no flat image"


EMPTY = {
    "nothing": "",
    "invisible characters": "\u200b\u200e\u202e\ufeff\x1b",
}
USED = {
    "10,000 characters": LONG,
    "100,000 characters": "cat " * 25_000,
    "control characters": "a\x01\x07\x1b[2J\x7f cat\r\nin the snow",
    "emoji": "🐈‍⬛ in the ❄️, 👩🏽‍🚀 🇩🇪",
    "right to left": "قطة ترتدي قبعة حمراء \u202etac\u202c חתול",
    "Chinese, combining marks and rare letters": "一只猫 c\u0301a" + "\u0301" * 500 + "𝓬𝓪𝓽 𠀀 \U0003fffe \ue000",
    "the encoders' own tokens": "<|endoftext|> <|startoftext|> </s> <pad> <unk> <image>",
    "markup and formats": "[red]cat[/red] [/nothing] <script>alert(1)</script> {prompt} {0} %s %(x)d",
    "an option": "--help",
}


def cases() -> Iterator[Case]:
    for name, prompt in EMPTY.items():
        for make in (_scored, _generated):
            yield Case("prompt", f"{name}, {make.__name__[1:]}", make(prompt), (("--prompt is empty; describe what",),))
    for make in (_scored, _generated):
        yield Case(
            "prompt", f"bytes that are no UTF-8, {make.__name__[1:]}", make("cat \udcff"), (("--prompt holds half",),)
        )
    for name, prompt in USED.items():
        yield Case("prompt", f"{name}, scored", _scored(prompt), (), _has_score)
    for name in ("10,000 characters", "the encoders' own tokens"):
        yield Case("prompt", f"{name}, generated", _generated(USED[name]), (), _is_image)


CASES = list(cases())
