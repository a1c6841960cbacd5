"""Documents and docstrings use the field's words: at most one word of the old dialect per 1,000 words."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Words of the old dialect, where the field has its own (reward model, image, sample, weight, ...).
DIALECT = re.compile(
    r"\b(judge[sd]?|judging|told|tells?|drawn|draws?|drawing|pictures?|weigh(?:s|ed)?|forth and back|way back|kept|"
    r"go(?:es)? on|(?:left|leave[sd]?) out|wish(?:es)?|rivals?|asides?|house|rooms?|mended)\b",
    re.IGNORECASE,
)
#: Docstrings that begin like this describe a thing instead of naming it.
OPENING = re.compile(r"(What|Of|Whether|Those|That of|Likewise|As)\b")


def docstrings() -> Iterator[tuple[Path, str]]:
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield file.relative_to(ROOT), text


def documents() -> Iterator[tuple[Path, str]]:
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = file.read_text(encoding="utf-8")
        yield file.relative_to(ROOT), re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.M | re.S)


@pytest.mark.parametrize("texts", [documents, docstrings], ids=["documents", "docstrings"])
def test_texts_use_the_words_of_the_field(texts: object) -> None:
    words, found = 0, Counter[str]()
    assert callable(texts)
    for file, text in texts():
        words += len(text.split())
        found.update(f"{file}: {match[0].lower()}" for match in DIALECT.finditer(text))
    assert found.total() <= words / 1000, (found.total(), words, found.most_common(40))


def test_docstrings_begin_with_what_they_describe() -> None:
    assert [f"{file}: {text.splitlines()[0]}" for file, text in docstrings() if OPENING.match(text)] == []
