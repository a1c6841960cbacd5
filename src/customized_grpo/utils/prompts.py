"""Checks of prompts, from data sets, commands and the demo alike."""

import logging
import unicodedata
from pathlib import Path

from customized_grpo.utils.records import read_text

_LARGEST_FILE = 2**20  # bytes
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


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a text file, one per line; blank lines are skipped. Raises ValueError, one line."""
    prompts = [line.strip() for line in read_text(path, _LARGEST_FILE).splitlines() if has_letters(line)]
    if not prompts:
        raise ValueError(f"{path}: holds no prompt; write one per line")
    return prompts


def silence_truncation(module: str) -> None:
    """Drop the warnings that a pipeline's module and its tokenizers log for each long prompt at each encoding."""
    for name in (module, "transformers.tokenization_utils_base"):
        logging.getLogger(name).addFilter(_is_no_truncation)


def _is_no_truncation(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith((
        "The following part of your input was truncated", "Token indices sequence length is longer"
    ))  # fmt: skip
