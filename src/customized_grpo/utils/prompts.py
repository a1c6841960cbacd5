"""Checks of prompts, from data sets, commands and the demo alike."""

from __future__ import annotations

import unicodedata

#: Unicode's categories of invisible characters: control and format characters, surrogates, spaces.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})


def has_letters(text: str) -> bool:
    """Return True if the text contains a visible character."""
    return any(unicodedata.category(letter) not in _UNSEEN for letter in text)


def encoding_problem(text: str) -> str | None:
    """Return why the text cannot be encoded as UTF-8, with the remedy; None if it can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair, or bytes that are not UTF-8; write it as valid UTF-8"
    return None


def check_prompt(text: str, where: str) -> None:
    """Raise ValueError, one line that begins with `where`, for a prompt that is blank or not UTF-8."""
    if problem := encoding_problem(text):
        raise ValueError(f"{where} {problem}")
    if not has_letters(text):
        raise ValueError(f"{where} is empty; describe what the image should show")
