"""Pairs from photos of one subject: each prompt of a list with one of the photos."""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from customized_grpo.data import image_files
from customized_grpo.data.errors import DataError
from customized_grpo.utils.prompts import check_prompt
from customized_grpo.utils.records import read_regular, write_bytes

#: Names of the built-in lists of prompts.
PROMPT_LISTS = ("object", "live")
_SUBJECT = "{subject}"
_LARGEST_FILE = 2**20  # bytes of a list of prompts
_EACH = 5  # every fifth prompt is held out


def write_pairs(photos: Path, subject: str, prompts: str, out: Path, held_out: Path | None = None) -> tuple[int, int]:
    """Write pairs of one subject as JSON lines.

    Every prompt is combined with every photo, in an order in which the photos take turns. Masks in `photos`/masks are
    found later by their names.

    Args:
        photos: Folder of photos of the subject.
        subject: Class word of the subject, such as "corgi".
        prompts: "object" or "live", a built-in list, or the path of a text file with one prompt per line, in which
            `{subject}` is replaced by the class word and its article.
        out: File to write or replace, in `photos` or a folder above it.
        held_out: File for every fifth prompt, which `out` then lacks.

    Returns:
        Numbers of pairs in `out` and in `held_out`.

    Raises:
        DataError: A photo is damaged or missing, the prompts cannot be read, or a file cannot be written there.
    """
    check_prompt(subject, "--subject")
    found = sorted(path for path in photos.glob("*") if path.suffix.lower() in image_files.SUFFIXES)
    if not found:
        raise DataError(
            [f"{photos}: no photo in it ({', '.join(image_files.SUFFIXES)}); give the folder of the photos"]
        )
    if broken := image_files.problems(found, image_files.check):
        raise DataError(broken.values())
    texts = _with_subject(_templates(prompts), subject)
    if held_out is not None and len(texts) < _EACH:
        raise DataError([f"{prompts}: {len(texts)} prompts; give at least {_EACH} to hold some out"])
    kept_apart = texts[_EACH - 1 :: _EACH] if held_out is not None else []
    used = [text for text in texts if text not in kept_apart]
    files_to_write = [(out, used), *([(held_out, kept_apart)] if held_out is not None else [])]
    for path, _ in files_to_write:
        if not photos.resolve().is_relative_to(path.resolve().parent):
            raise DataError([f"{path}: must be in {photos} or a folder above it, because paths are relative to it"])
    for path, lines in files_to_write:
        write_bytes(path, "".join(_lines(path, lines, found, subject)).encode())
    return len(used) * len(found), len(kept_apart) * len(found)


def _lines(path: Path, prompts: Sequence[str], photos: Sequence[Path], subject: str) -> list[str]:
    names = [photo.resolve().relative_to(path.resolve().parent).as_posix() for photo in photos]
    return [
        json.dumps({"prompt": prompt, "references": [names[(i + turn) % len(names)]], "subject": subject}) + "\n"
        for turn in range(len(names))
        for i, prompt in enumerate(prompts)
    ]


def _templates(prompts: str) -> list[str]:
    if prompts in PROMPT_LISTS:
        text = files("customized_grpo.data").joinpath("prompts", f"{prompts}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = read_regular(Path(prompts), _LARGEST_FILE).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            known = " or ".join(PROMPT_LISTS)
            raise DataError([f"--prompts {prompts}: cannot be read ({error}); give {known}, or a text file"]) from error
    templates = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not templates:
        raise DataError([f"--prompts {prompts}: no prompt in it; write one per line, with {_SUBJECT} for the subject"])
    if lacking := next((line for line in templates if _SUBJECT not in line), None):
        raise DataError([f"--prompts {prompts}: {lacking!r} does not contain {_SUBJECT}; add it"])
    return templates


def _with_subject(templates: Sequence[str], subject: str) -> list[str]:
    """Insert the subject; an article before it fits its first letter."""
    article = "an" if subject.lower()[0] in "aeiou" else "a"
    fitting = (
        re.sub(r"\b([Aa])n? (?=\{subject\})", lambda found: found[1] + article[1:] + " ", one) for one in templates
    )
    return [text.replace(_SUBJECT, subject) for text in fitting]
