"""An evaluation on the disk: one PNG for each (subject, prompt, index), and their scores as JSON lines.

OUT/settings.json     what the pictures are of: benchmark, system, seed, steps, metrics
OUT/pictures/         SUBJECT/PP_I.png, PP the number of the prompt and I that of the picture
OUT/scores/           one file of records for each process, one record for each subject and prompt
OUT/summary.json      means and intervals: overall, by kind of prompt, by subject; table.md shows the same

A process may die at any moment: a picture or record is whole or not there.
"""

from __future__ import annotations

import io
import json
import math
import re
import string
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from customized_grpo.config import ConfigError
from customized_grpo.data import pictures
from customized_grpo.data.benchmark import Case
from customized_grpo.data.errors import DataError
from customized_grpo.utils.records import append_record, read_records, write_bytes, write_json

SETTINGS, PICTURES, SCORES = "settings.json", "pictures", "scores"
#: How pictures are named, those of other systems too where nothing else is said.
TEMPLATE = "{subject}/{prompt:02}_{index}.png"
_FIELDS = ("subject", "prompt", "index")


@dataclass(frozen=True)
class PictureFolder:
    """Pictures of cases in a folder, named by a template of {subject}, {prompt} and {index}, numbers from 0."""

    root: Path
    template: str = TEMPLATE

    def path(self, case: Case, index: int) -> Path:
        return self.root / self.template.format(subject=case.subject, prompt=case.prompt, index=index)

    def check(self, cases: Iterable[Case], images: int) -> None:
        """Raises DataError that names every picture that is missing or damaged."""
        paths = [self.path(case, index) for case in cases for index in range(images)]
        absent = [path for path in paths if not path.is_file()]
        problems = [f"{path}: no such picture; draw it, or say by --pictures-as how they are named" for path in absent]
        problems += pictures.problems((path for path in paths if path.is_file()), pictures.check).values()
        if problems:
            raise DataError(problems)

    def write(self, case: Case, index: int, picture: Image.Image) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        write_bytes(self.path(case, index), buffer.getvalue())


def check_template(template: str, images: int) -> None:
    """Raises ConfigError where a template is not of the three names, or would give two pictures one name."""
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(f"--pictures-as {template!r}: {error}; write it as {TEMPLATE}") from error
    for _, name, form, conversion in parts:
        number = name != "subject" and re.fullmatch(r"(0\d+)?", form or "")
        if name not in _FIELDS or conversion or not (number or not form):
            raise ConfigError(f"--pictures-as {template!r}: {name!r} is none of {', '.join(_FIELDS)}; as {TEMPLATE}")
    named = {name for _, name, _, _ in parts}
    for name in _FIELDS:
        if name not in named and not (name == "index" and images == 1):
            raise ConfigError(f"--pictures-as {template!r}: lacks {{{name}}}, which tells pictures apart; add it")


@dataclass(frozen=True)
class Record:
    """Scores by metric of the pictures of one case, NaN where one is missing, and the pictures' checksums."""

    key: str
    checksums: list[int]
    scores: dict[str, list[float]]


class Records:
    """The records of an evaluation, of whichever process and time."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_case: dict[str, list[Record]] = {}
        for record in records:
            self._by_case.setdefault(record.key, []).append(record)

    def scores(self, case: Case, checksums: Sequence[int | None]) -> dict[str, list[float]]:
        """Scores by metric of these very pictures of the case; empty where there are none."""
        found: dict[str, list[float]] = {}
        for record in self._by_case.get(case.key, ()):
            if record.checksums == list(checksums):
                found.update(record.scores)
        return found

    def altered(self, case: Case, index: int, now: int) -> bool:
        """Whether that picture was scored once, but never as it is now."""
        known = [r.checksums[index] for r in self._by_case.get(case.key, ()) if index < len(r.checksums)]
        return bool(known) and now not in known


class EvaluationFolder:
    """The folder of one system's evaluation. Processes write records to files of their own, by `process`."""

    def __init__(self, path: Path, process: int = 0) -> None:
        self.path = path
        self.pictures = PictureFolder(path / PICTURES)
        self._own = path / SCORES / f"{process}.jsonl"

    def settings(self) -> dict[str, Any] | None:
        """What the folder was begun with, or None where it holds no evaluation."""
        try:
            kept = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path / SETTINGS}: cannot be read ({error}); give another --out") from error
        return kept if isinstance(kept, dict) else None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Note what the folder is of. Raises ConfigError where it was begun with something else.

        Metrics that it does not have yet are added; those that it has must be measured alike.
        """
        kept = self.settings()
        if kept is None and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(f"{self.path}: holds something else than an evaluation; give another --out")
        now = json.loads(json.dumps(settings))
        if kept is not None:
            other = difference(kept, now)
            if other is not None:
                raise ConfigError(f"{self.path}: was begun with another {other}; give another --out, or remove it")
            now["metrics"] = {**kept["metrics"], **now["metrics"]}
        if now != kept:
            write_json(self.path / SETTINGS, now)

    def records(self) -> Records:
        """All of its records. Raises ConfigError where one is none."""
        found = []
        for path in sorted((self.path / SCORES).glob("*.jsonl")):
            for number, one in enumerate(read_records(path), start=1):
                try:
                    scores = {n: [math.nan if v is None else float(v) for v in s] for n, s in one["scores"].items()}
                    found.append(Record(str(one["case"]), [int(c) for c in one["pictures"]], scores))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise ConfigError(f"{path}:{number}: not a record of scores; remove the line") from error
        return Records(found)

    def add(self, record: Record) -> None:
        append_record(self._own, {"case": record.key, "pictures": record.checksums, "scores": record.scores})


def difference(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first part of two evaluations' settings in which they differ, or None; of metrics, those that both have."""
    for key, value in now.items():
        if key == "metrics":
            for name, metric in value.items():
                if kept.get("metrics", {}).get(name, metric) != metric:
                    return f"metric {name!r}"
        elif kept.get(key) != value:
            return key
    return None


def checksum(path: Path) -> int | None:
    """Of a file's bytes; None where there is no file."""
    try:
        return zlib.crc32(path.read_bytes())
    except FileNotFoundError:
        return None


def sound(path: Path) -> bool:
    """Whether the picture is there and whole, by its own checksums."""
    try:
        pictures.check(path, quick=True)
    except DataError:
        return False
    return True
