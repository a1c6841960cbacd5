"""Removal of secrets, addresses and local paths from a configuration before others see it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

LOCAL_PATH, ADDRESS, SECRET = "<local path>", "<address>", "<secret>"

_SECRET_KEY = re.compile(r"(?i)(^|_|-)(key|token|secret|password|passwd|credentials?|authorization|headers?)$|api.?key")
_TOKEN = re.compile(r"\b(hf_|sk-|gh[pousr]_|github_pat_|xox[abp]-|AKIA)[A-Za-z0-9_-]{12,}")
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # user and password of an address
_URL = re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
# From the first absolute, home or upward path to the end, since names of folders may contain spaces; but without the
# name behind a colon, such as the function in "rewards.py:colourful".
_PATH = re.compile(
    r"(file:|(?<![\w.:)\]>-])(?=/)|(?<!\w)~(?=[\w.-]*[/\\])|(?<!\w)[A-Za-z]:[\\/]|\\\\|(?<![\w.])\.\.[/\\]).*?(?=:\w+$|$)",
    re.DOTALL,
)


def redact(value: Any) -> Any:
    """Remove secrets, addresses and local paths from JSON values."""
    return _cleaned(value, "", redact_text)


def hide_secrets(value: Any) -> Any:
    """Remove secrets alone from JSON values, for files that stay on this machine."""
    return _cleaned(value, "", lambda text: _PASSWORD.sub(SECRET, _TOKEN.sub(SECRET, text)))


def _cleaned(value: Any, key: str, clean: Callable[[str], str]) -> Any:
    if value is not None and not isinstance(value, bool | int | float) and _SECRET_KEY.search(key):
        return SECRET
    if isinstance(value, Mapping):
        return {str(name): _cleaned(inner, str(name), clean) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(inner, "", clean) for inner in value]
    return clean(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """Remove tokens of common services, addresses, and absolute or upward paths from text. Hub ids stay."""
    text = _TOKEN.sub(SECRET, text)
    text = _URL.sub(ADDRESS, text)
    return _PATH.sub(LOCAL_PATH, text)
