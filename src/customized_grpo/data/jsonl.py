"""Pairs from JSON lines, one object a line:

    {"prompt": "a cat in the snow", "references": ["a.jpg"], "masks": ["a.png"], "subject": "cat"}

`prompt` and `references` (or `reference`, one path) are required. `masks` (or `mask`) has one path
for each reference, null where there is none; `subject` is the class word; `key` is `FILE:LINE`
where none is given. Paths start from the file's own folder, or from `root`, and stay inside it.
Other keys are columns of the pair, for rewards; one that is spelt almost like a known key is an error.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from customized_grpo.data.errors import DataError
from customized_grpo.data.records import Fields, FilePairs, Record, shown, unrepeated

KEYS = ("prompt", "references", "reference", "masks", "mask", "subject", "key")
_ALIKE = 0.8  # of difflib's ratio: "refrences" and "promt" are above it, "image_prompt" and "task" are not
_LONGEST_NAME = 100  # letters of a column's name


def open_jsonl(path: Path, root: Path | None = None) -> FilePairs:
    """The pairs of a JSON lines file. Raises DataError with all problems, FILE:LINE for each."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror}); correct the path"]) from error
    problems: list[str] = []
    records = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            record = _record(line, path, number, root or path.parent, problems)
            if record is not None:
                records.append(record)
    try:
        # Missing pictures are told of together with broken lines, not a run later.
        pairs = FilePairs(records, str(path)) if records or not problems else None
    except DataError as error:
        problems += error.problems
    if problems or pairs is None:
        raise DataError(problems)
    return pairs


def _record(line: bytes, path: Path, number: int, root: Path, problems: list[str]) -> Record | None:
    where = f"{path}:{number}"
    before = len(problems)
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=unrepeated)
    except UnicodeDecodeError:
        problems.append(f"{where}: not UTF-8; save the file as UTF-8")
        return None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        problems.append(f"{where}: not valid JSON ({reason}); write one object a line")
        return None
    if not isinstance(value, dict):
        problems.append(f"{where}: not a JSON object; write one object a line")
        return None
    fields = Fields(where, value, root, problems)
    columns = {name: content for name, content in value.items() if name not in KEYS}
    for name in columns:
        if near := difflib.get_close_matches(name[:_LONGEST_NAME].lower(), KEYS, 1, _ALIKE):
            fields.wrong(f"unknown key {shown(name)}; did you mean {near[0]!r}? If not, give the column another name")
        elif not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
            fields.wrong(f"unknown key {shown(name)}; a column needs a name of 1 to {_LONGEST_NAME} printable letters")
    prompt = fields.text(["prompt"])
    pictures = fields.pictures(["references", "reference"], ["masks", "mask"])
    subject = fields.text(["subject"], required=False)
    key = fields.text(["key"], required=False)
    if prompt is None or pictures is None or len(problems) > before:
        return None
    return Record(where, key or f"{path.name}:{number}", prompt, *pictures, subject, columns)
