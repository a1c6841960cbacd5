"""Pairs from JSON lines, one object a line:

    {"prompt": "a cat in the snow", "references": ["a.jpg"], "masks": ["a.png"], "subject": "cat"}

`prompt` and `references` (or `reference`, one path) are required. `masks` (or `mask`) has one path
for each reference, null where there is none; `subject` is the class word; `key` is `FILE:LINE`
where none is given. Paths start from the file's own folder, or from `root`, and stay inside it.
"""

from __future__ import annotations

import json
from pathlib import Path

from customized_grpo.config.loading import nearest
from customized_grpo.data.errors import DataError
from customized_grpo.data.records import Fields, FilePairs, Record, shown, unrepeated

KEYS = ("prompt", "references", "reference", "masks", "mask", "subject", "key")


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
    for key in sorted(value.keys() - set(KEYS)):
        near = nearest(key, KEYS)
        remedy = f"did you mean {near!r}?" if near else f"known are {', '.join(KEYS)}"
        fields.wrong(f"unknown key {shown(key)}; {remedy}")
    prompt = fields.text(["prompt"])
    pictures = fields.pictures(["references", "reference"], ["masks", "mask"])
    subject = fields.text(["subject"], required=False)
    key = fields.text(["key"], required=False)
    if prompt is None or pictures is None or len(problems) > before:
        return None
    return Record(where, key or f"{path.name}:{number}", prompt, *pictures, subject)
