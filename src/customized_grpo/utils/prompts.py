"""Which texts can be prompts at all, whoever wrote them: a data set, a command, a page."""

from __future__ import annotations

import unicodedata

#: Unicode's categories of what shows nothing: control and format characters, halves of pairs, spaces.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})


def has_letters(text: str) -> bool:
    """Whether the text holds anything that a reader would see."""
    return any(unicodedata.category(letter) not in _UNSEEN for letter in text)


def encoding_problem(text: str) -> str | None:
    """What keeps the text from being UTF-8, with the remedy; None for all texts that are."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair, or bytes that are no UTF-8; write it as valid UTF-8"
    return None


def check_prompt(text: str, where: str) -> None:
    """Raises ValueError, one line that begins with `where`, for a prompt that is empty to a reader or no UTF-8."""
    if problem := encoding_problem(text):
        raise ValueError(f"{where} {problem}")
    if not has_letters(text):
        raise ValueError(f"{where} is empty; say what the picture should show")
