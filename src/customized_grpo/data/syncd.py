"""Pairs from SynCD-style JSON: a list of records, or an object with one list of records in it.

A record is one of

- a set of images of one object, as SynCD's `metadata.json` has them:
  {"filenames": ["a_0.jpg", "a_1.jpg"], "prompts": ["...", "..."]}. Each prompt becomes a pair, and
  its reference is the next image of the set, never the one that the prompt describes;
- one pair: {"prompt" or "caption", "references", "reference_images", "images", "image_paths" or
  "image_path"}, with "masks" or "mask" where there are any (UNO's training files have this form).

The subject is "subject" or "category". Paths start from the file's own folder, or from `root`, and
stay inside it. Where a record names no masks, `masks/NAME.png` or `.jpg` beside a picture is its
mask, as in SynCD. Other keys (scores, targets) are columns of the pairs, for rewards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from customized_grpo.data.errors import DataError
from customized_grpo.data.records import Fields, FilePairs, Record, mask_beside, read_text, unrepeated

REFERENCES = ("references", "reference_images", "images", "image_paths", "image_path", "reference")
_PROMPT, _MASKS, _SUBJECT = ("prompt", "caption"), ("masks", "mask"), ("subject", "category")


def open_syncd(path: Path, root: Path | None = None) -> FilePairs:
    """The pairs of a SynCD-style file. Raises DataError with all its problems; record numbers count
    from 0."""
    problems: list[str] = []
    records = []
    for index, item in enumerate(_items(path)):
        where = f"{path}[{index}]"
        if not isinstance(item, dict):
            problems.append(f"{where}: not an object; see docs/data.md")
            continue
        fields = Fields(where, item, root or path.parent, problems)
        read = _set_of_images if "filenames" in item else _pair
        records += read(fields, f"{path.name}[{index}]")
    try:
        pairs = FilePairs(records, str(path)) if records or not problems else None
    except DataError as error:
        problems += error.problems
    if problems or pairs is None:
        raise DataError(problems)
    return pairs


def _items(path: Path) -> list[Any]:
    try:
        content = json.loads(read_text(path), object_pairs_hook=unrepeated)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError([f"{path}{line}: not valid JSON ({reason}); a file of JSON lines ends in .jsonl"]) from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise DataError([f"{path}: neither a list of records nor an object with one list; give either"])
    return content


def _set_of_images(fields: Fields, key: str) -> list[Record]:
    name = fields.which(["prompts"])
    prompts = fields.texts(name) if name else None
    images = [path for path in fields.paths("filenames") or [] if path is not None]
    subject = fields.text(_SUBJECT, required=False)
    if prompts is None or not images:
        return []
    if len(prompts) != len(images):
        fields.wrong(f"{len(prompts)} prompts for {len(images)} filenames; give one each")
        return []
    if len(images) < 2:
        fields.wrong("one image alone, which its own prompt describes; add a second or remove the record")
        return []
    records = []
    for i, prompt in enumerate(prompts):
        reference = images[(i + 1) % len(images)]
        masks = (mask_beside(reference),)
        columns = fields.others("filenames", "prompts", *_SUBJECT)
        records.append(Record(f"{fields.where}.{i}", f"{key}.{i}", prompt, (reference,), masks, subject, columns))
    return records


def _pair(fields: Fields, key: str) -> list[Record]:
    prompt = fields.text(_PROMPT)
    pictures = fields.pictures(REFERENCES, _MASKS)
    subject = fields.text(_SUBJECT, required=False)
    if prompt is None or pictures is None:
        return []
    references, masks = pictures
    if not any(masks):
        masks = tuple(mask_beside(path) for path in references)
    columns = fields.others(*_PROMPT, *REFERENCES, *_MASKS, *_SUBJECT)
    return [Record(fields.where, key, prompt, references, masks, subject, columns)]
