"""Files of an evaluation.

OUT/settings.json     benchmark, system, seed, steps and metrics
OUT/images/         SUBJECT/PP_I.png, with the number PP of the prompt and I of the image
OUT/scores/           JSON lines, one file for each process and one record for each prompt of a subject
OUT/summary.json      means and intervals: overall, by kind of prompt, by subject; table.md shows the same

A process may be killed at any moment: an image or record is complete or absent.
"""

import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from pydantic import BaseModel, ValidationError

from customized_grpo.config import ConfigError
from customized_grpo.data import image_files
from customized_grpo.data.benchmark import Case
from customized_grpo.data.errors import DataError
from customized_grpo.utils.records import append_record, read_records, read_regular, write_json

SETTINGS, IMAGES, SCORES = "settings.json", "images", "scores"
#: Default names of images, also for those of other systems.
TEMPLATE = "{subject}/{prompt:02}_{index}.png"
#: Fields of a template, and a regular expression of the formats that each may have: numbers of at most 9 digits.
_FIELDS = {"subject": "", "prompt": "0?[1-9]?d?", "index": "0?[1-9]?d?"}


@dataclass(frozen=True)
class ImageFolder:
    """Images of cases in a folder, named by a template of {subject}, {prompt} and {index}, numbers from 0."""

    root: Path
    template: str = TEMPLATE

    def path(self, case: Case, index: int) -> Path:
        """Return the file of image number `index` of a case."""
        return self.root / self.template.format(subject=case.subject, prompt=case.prompt, index=index)

    def checksums(self, case: Case, images: int) -> tuple[int | None, ...]:
        """Return the checksums of a case's image files, None where there is no file."""
        paths = [self.path(case, index) for index in range(images)]
        return tuple(zlib.crc32(path.read_bytes()) if path.is_file() else None for path in paths)

    def check(self, cases: Iterable[Case], images: int) -> None:
        """Raise DataError with every image that is missing or damaged."""
        paths = [self.path(case, index) for case in cases for index in range(images)]
        problems = [
            f"{path}: no such image; generate it, or describe the names by --image-pattern"
            for path in paths
            if not path.is_file()
        ]
        problems += image_files.problems((path for path in paths if path.is_file()), image_files.check).values()
        if problems:
            raise DataError(problems)

    def sound(self, case: Case, index: int) -> bool:
        """Return whether an image is there and complete, by its own checksums."""
        try:
            image_files.check(self.path(case, index), quick=True)
        except DataError:
            return False
        return True


def check_template(template: str, images: int) -> None:
    """Raise ConfigError if a template uses other fields or leaves the folder, or gives two images one name."""
    if Path(template).is_absolute() or ".." in Path(template).parts:
        raise ConfigError(f"--image-pattern {template!r}: leaves the folder of the images; write it as {TEMPLATE}")
    numbers = [(subject, prompt, index) for subject in "ab" for prompt in (1, 2) for index in (1, 2)[:images]]
    try:
        for _, name, form, conversion in Formatter().parse(template):
            if name is not None and (name not in _FIELDS or conversion or not re.fullmatch(_FIELDS[name], form or "")):
                raise ValueError(f"{{{name}}} with {form or conversion or 'nothing'!r} is no field of it")
        names = {template.format(subject=s, prompt=p, index=i) for s, p, i in numbers}
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"--image-pattern {template!r}: not a template ({error}); write it as {TEMPLATE}") from error
    if len(names) < len(numbers):
        raise ConfigError(
            f"--image-pattern {template!r}: two images would have one name; "
            "use {subject}, {prompt} and, for several images per prompt, {index}"
        )


class Record(BaseModel):
    """Scores by metric of the images of one case (NaN for a missing score), and the images' checksums."""

    case: str
    images: list[int]
    scores: dict[str, list[float | None]]


#: Scores by metric of the images of a case, by the case's key and the images' checksums.
Found = dict[tuple[str, tuple[int | None, ...]], dict[str, list[float]]]


class EvaluationFolder:
    """Folder of one system's evaluation. Each process writes records to a file of its own."""

    def __init__(self, path: Path, process: int = 0) -> None:
        self.path = path
        self.images = ImageFolder(path / IMAGES)
        self._own = path / SCORES / f"{process}.jsonl"

    def settings(self) -> dict[str, Any] | None:
        """Return the settings that the evaluation was started with, or None if there is no evaluation."""
        try:
            kept = json.loads(read_regular(self.path / SETTINGS))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path / SETTINGS}: cannot be read ({error}); give another --out") from error
        return kept if isinstance(kept, dict) else None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Store the settings; metrics are added. Raises ConfigError if the folder was started with others."""
        kept = self.settings()
        if kept is None and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(f"{self.path}: contains something other than an evaluation; give another --out")
        now = json.loads(json.dumps(settings))
        if kept is not None:
            if other := difference(kept, now):
                raise ConfigError(f"{self.path}: was started with another {other}; give another --out, or remove it")
            now["metrics"] = {**kept["metrics"], **now["metrics"]}
        if now != kept:
            write_json(self.path / SETTINGS, now)

    def scores(self) -> Found:
        """Read the scores of all processes. Raises ConfigError for a line that is no record of them."""
        found: Found = {}
        for path in sorted((self.path / SCORES).glob("*.jsonl")):
            for number, one in enumerate(read_records(path), start=1):
                try:
                    record = Record.model_validate(one)
                except ValidationError as error:
                    raise ConfigError(f"{path}:{number}: not a record of scores; remove the line") from error
                known = found.setdefault((record.case, tuple(record.images)), {})
                for name, values in record.scores.items():
                    known[name] = [math.nan if value is None else value for value in values]
        return found

    def add(self, record: Record) -> None:
        """Append a record to this process's file."""
        append_record(self._own, record.model_dump())


def difference(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first setting in which two evaluations differ, if any; of metrics, those that both have count."""
    for key, value in now.items():
        if key == "metrics":
            for name, metric in value.items():
                if kept.get("metrics", {}).get(name, metric) != metric:
                    return f"metric {name!r}"
        elif kept.get(key) != value:
            return key
    return None
