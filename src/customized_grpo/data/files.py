"""Datasets from files: JSON lines, or JSON with a list of records as SynCD and UNO write it. See docs/data.md."""

import difflib
from pathlib import Path
from typing import Any

from customized_grpo.data.dreambench import LIST, SUFFIXES
from customized_grpo.data.errors import DataError
from customized_grpo.data.records import (
    FilePairs,
    ImageSetRecord,
    PairRecord,
    Record,
    clean_text,
    mask_beside,
    parse_json,
    read_bytes,
    shown,
    validate,
)

METADATA = "metadata.jsonl"  #: of a folder of images, as the `imagefolder` of Hugging Face datasets has it
_KNOWN = ("prompt", "references", "reference", "masks", "mask", "subject", "key")
_SIMILAR = 0.8  # difflib ratio: "refrences" and "promt" are above it, "image_prompt" and "task" are below
_LONGEST_NAME = 100  # characters of a column's name


def open_file(path: Path, root: Path | None = None) -> FilePairs:
    """Open a .jsonl file, or a .json file with a list of records. Raises DataError, FILE:LINE or FILE[INDEX] each."""
    content = read_bytes(path)
    lines = path.suffix.lower() != ".json"
    parts: list[tuple[str, Any]]
    if lines:
        rows = enumerate(content.split(b"\n"), start=1)
        parts = [(f":{number}", row) for number, row in rows if row.strip()]
    else:
        items = parse_json(content, str(path), "a file of JSON lines ends in .jsonl")
        if isinstance(items, dict):
            found = [value for value in items.values() if isinstance(value, list)]
            items = found[0] if len(found) == 1 else items
        if not isinstance(items, list):
            raise DataError([f"{path}: neither a list of records nor an object with one list; give either"])
        parts = [(f"[{i}]", item) for i, item in enumerate(items)]
    records: list[Record] = []
    problems: list[str] = []
    for place, part in parts:
        try:
            item = parse_json(part, f"{path}{place}", "write one object a line") if lines else part
            if not isinstance(item, dict):
                raise DataError([f"{path}{place}: not a JSON object; see docs/data.md for the form of a record"])
            if lines and "filenames" not in item:
                _check_keys(f"{path}{place}", item)
            records += _records(f"{path}{place}", f"{path.name}{place}", item, root or path.parent)
        except DataError as error:
            problems += error.problems
    return FilePairs(records, str(path), problems)


def captioned_images(folder: Path) -> FilePairs | None:
    """Open a folder of images with a caption NAME.txt beside each NAME.png; None if it has no captions.

    Subfolders are included, except those named masks. Raises DataError for a missing, empty or broken caption.
    """
    if (folder / LIST).is_file() or (folder / "dataset" / LIST).is_file():
        return None
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.parent.name != "masks")
    images = sorted(found)
    if not any(path.with_suffix(".txt").is_file() for path in images):
        return None
    records: list[Record] = []
    problems: list[str] = []
    for image in images:
        caption = image.with_suffix(".txt")
        try:
            if not caption.is_file():
                raise ValueError("is missing; write the prompt of its image to it, or remove the image")
            text = " ".join(clean_text(read_bytes(caption).decode("utf-8")).split())
        except DataError as error:
            problems += error.problems
        except UnicodeDecodeError as error:
            problems.append(f"{caption}: not UTF-8 at byte {error.start}; save it as UTF-8")
        except ValueError as error:
            problems.append(f"{caption}: {error}")
        else:
            key = str(image.relative_to(folder))
            records.append(Record(str(caption), key, text, (image,), (mask_beside(image),)))
    return FilePairs(records, str(folder), problems)


def _check_keys(where: str, item: dict[str, Any]) -> None:
    """Refuse keys that are nearly a known one, because a misspelt optional key would be ignored as a column."""
    for key in item.keys() - set(_KNOWN):
        if near := difflib.get_close_matches(key[:_LONGEST_NAME].lower(), _KNOWN, 1, _SIMILAR):
            remedy = f"did you mean {near[0]!r}? If not, give the column another name"
        elif not key.strip() or not key.isprintable() or len(key) > _LONGEST_NAME:
            remedy = f"a column needs a name of 1 to {_LONGEST_NAME} printable letters"
        else:
            continue
        raise DataError([f"{where}: unknown key {shown(key)}; {remedy}"])


def _records(where: str, key: str, item: dict[str, Any], root: Path) -> list[Record]:
    if "filenames" not in item:
        one, columns = validate(PairRecord, where, item, root)
        if one.masks and len(one.masks) != len(one.references):
            given = f"'masks' has {len(one.masks)} for {len(one.references)} references"
            raise DataError([f"{where}: {given}; give one each, null where there is none"])
        masks = one.masks or tuple(map(mask_beside, one.references))
        return [Record(where, one.key or key, one.prompt, one.references, masks, one.subject, columns)]
    images, columns = validate(ImageSetRecord, where, item, root)
    if len(images.prompts) != len(images.filenames) or len(images.filenames) < 2:
        given = f"{len(images.prompts)} prompts for {len(images.filenames)} filenames"
        raise DataError([f"{where}: {given}; give one each, for two images or more"])
    # The reference of a prompt is the next image, never the one that the prompt describes.
    following = [*images.filenames[1:], images.filenames[0]]
    return [
        Record(f"{where}.{i}", f"{key}.{i}", prompt, (reference,), (mask_beside(reference),), images.subject, columns)
        for i, (prompt, reference) in enumerate(zip(images.prompts, following, strict=True))
    ]
