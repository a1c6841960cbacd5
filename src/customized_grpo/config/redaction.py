"""A configuration as others may see it: without this machine's paths, addresses and secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

LOCAL_PATH, ADDRESS, SECRET = "<local path>", "<address>", "<secret>"

_SECRET_KEY = re.compile(r"(?i)(^|_|-)(key|token|secret|password|passwd|credentials?|authorization|headers?)$|api.?key")
_TOKEN = re.compile(r"\b(hf_|sk-|gh[pousr]_|github_pat_|xox[abp]-|AKIA)[A-Za-z0-9_-]{12,}")
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # what an address holds before its host
_URL = re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
# From the first absolute, home or upward path on to the end: names of folders may hold spaces. What stays is the
# name behind a colon, the function in "rewards.py:colourful".
_PATH = re.compile(
    r"(file:|(?<![\w.:)\]>-])(?=/)|(?<!\w)~(?=[\w.-]*[/\\])|(?<!\w)[A-Za-z]:[\\/]|\\\\|(?<![\w.])\.\.[/\\]).*?(?=:\w+$|$)",
    re.DOTALL,
)


def redact(value: Any) -> Any:
    """JSON values with each text cleaned, and whatever stands under a key that names a secret left out."""
    return _cleaned(value, "", redact_text)


def hide_secrets(value: Any) -> Any:
    """JSON values without secrets alone: for what stays on this machine, where paths and addresses are of use."""
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
    """The text without tokens of the usual services, addresses, and absolute or upward paths. Hub ids stay."""
    text = _TOKEN.sub(SECRET, text)
    text = _URL.sub(ADDRESS, text)
    return _PATH.sub(LOCAL_PATH, text)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one of dotted keys; lists are spelt out as text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str | bool | int | float | None) else str(value)
    return found
