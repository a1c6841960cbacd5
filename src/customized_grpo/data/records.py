"""Pairs that files describe: checked before training, their pictures read when asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from customized_grpo.config import DataConfig
from customized_grpo.data import pictures
from customized_grpo.data.errors import DataError
from customized_grpo.protocols import Pair
from customized_grpo.utils.prompts import encoding_problem, has_letters

#: With more pictures than this, those that are no JPEG are checked by header and checksum alone.
THOROUGH = 4000


@dataclass(frozen=True)
class Record:
    """One pair whose pictures are still files. `where` describes it, for messages."""

    where: str
    key: str
    prompt: str
    references: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    subject: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class FilePairs:
    """A PairDataset of records. Every pair has the columns of all records: None where its own has none of that name.

    Raises DataError with every problem there is: no record at all, a key given twice, a picture or
    mask that is missing or does not decode.
    """

    config: DataConfig | None = None

    def __init__(self, records: Sequence[Record], origin: str) -> None:
        self._records = tuple(records)
        self._columns = list(dict.fromkeys(name for record in records for name in record.columns))
        problems = [] if self._records else [f"{origin}: holds no pairs; add one"]
        problems += self._repeated_keys() + self._broken_files()
        if problems:
            raise DataError(problems)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Pair:
        record = self._records[index]
        references = tuple(pictures.load(path) for path in record.references)
        masks = tuple(
            pictures.load_mask(path, reference.size) if path else None
            for path, reference in zip(record.masks, references, strict=True)
        )
        columns = {name: record.columns.get(name) for name in self._columns}
        return Pair(record.key, record.prompt, references, masks, record.subject, columns)

    def _repeated_keys(self) -> list[str]:
        first: dict[str, str] = {}
        problems = []
        for record in self._records:
            other = first.setdefault(record.key, record.where)
            if other != record.where:
                problems.append(f"{record.where}: the key {record.key!r} is that of {other} too; give each its own")
        return problems

    def _broken_files(self) -> list[str]:
        # A picture is checked and complained of once, however many records show it.
        references = {path: record.where for record in reversed(self._records) for path in record.references}
        masks = {path: record.where for record in reversed(self._records) for path in record.masks if path}
        checker = partial(pictures.check, quick=len(references) > THOROUGH)
        broken = [(references[path], text) for path, text in pictures.problems(references, checker).items()]
        broken += [(masks[path], text) for path, text in pictures.problems(masks, pictures.check_mask).items()]
        order = {record.where: i for i, record in enumerate(self._records)}
        return [f"{where}: {text}" for where, text in sorted(broken, key=lambda item: order[item[0]])]


class Fields:
    """Reads one described pair field by field; what is wrong goes to `problems`, a line each."""

    def __init__(self, where: str, fields: Mapping[str, Any], root: Path, problems: list[str]) -> None:
        self.where = where
        self._fields = fields
        self._root = Path(os.path.abspath(root))
        self._problems = problems

    def wrong(self, message: str) -> None:
        self._problems.append(f"{self.where}: {message}")

    def others(self, *known: str) -> dict[str, Any]:
        """All fields but those of these names."""
        return {name: value for name, value in self._fields.items() if name not in known}

    def which(self, names: Sequence[str], *, required: bool = True) -> str | None:
        """The one of `names` that is given; a problem where several are, or a required one not."""
        given = [name for name in names if self._fields.get(name) is not None]
        if len(given) > 1:
            self.wrong(f"{given[0]!r} and {given[1]!r} are both given; keep one")
        elif not given and required:
            self.wrong(f"no {' or '.join(repr(name) for name in names)}; add it")
        return given[0] if len(given) == 1 else None

    def text(self, names: Sequence[str], *, required: bool = True) -> str | None:
        """The text that one of `names` gives, without space around it; None where there is none."""
        name = self.which(names, required=required)
        return None if name is None else self.as_text(name, self._fields[name])

    def texts(self, name: str) -> list[str] | None:
        """A list of texts; None, and a problem, where it is anything else."""
        values = self._fields[name]
        if not isinstance(values, list):
            self.wrong(f"{name!r} is {shown(values)}; give a list of texts")
            return None
        read = [self.as_text(f"{name}[{i}]", value) for i, value in enumerate(values)]
        whole = [text for text in read if text is not None]
        return whole if len(whole) == len(read) else None

    def as_text(self, name: str, value: object) -> str | None:
        if isinstance(value, str) and (problem := encoding_problem(value)):
            self.wrong(f"{name!r} {problem}")
            return None
        if not isinstance(value, str) or not has_letters(value):
            self.wrong(f"{name!r} is {shown(value)}; give a text that is not empty")
            return None
        return value.strip()

    def paths(self, name: str, *, gaps: bool = False) -> list[Path | None] | None:
        """Paths of a text or a list of texts, inside the root; with `gaps` null stands for no file.

        None, and a problem, where any is wrong. A list is never empty.
        """
        value = self._fields[name]
        values = value if isinstance(value, list) else [value]
        if not values:
            self.wrong(f"{name!r} is an empty list; give one path or more")
            return None
        read = [None if gaps and value is None else self._path(name, value) for value in values]
        missing = [path is None and not (gaps and value is None) for path, value in zip(read, values, strict=True)]
        return None if any(missing) else read

    def pictures(
        self, references: Sequence[str], masks: Sequence[str]
    ) -> tuple[tuple[Path, ...], tuple[Path | None, ...]] | None:
        """(references, masks) of equal length, from whichever of the names are given."""
        name = self.which(references)
        mask_name = self.which(masks, required=False)
        found = self.paths(name) if name else None
        drawn = self.paths(mask_name, gaps=True) if mask_name else None
        if found is None or (mask_name and drawn is None):
            return None
        if drawn is not None and len(drawn) != len(found):
            self.wrong(
                f"{mask_name!r} has {len(drawn)} for {len(found)} of {name!r}; give one each, null where there is none"
            )
            return None
        whole = tuple(path for path in found if path is not None)
        return whole, tuple(drawn or [None] * len(whole))

    def _path(self, name: str, value: object) -> Path | None:
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            self.wrong(f"{name!r} holds {shown(value)}; give the path of a file")
            return None
        # Only the path's own text may not leave: links that lie inside the folder are its owner's
        # doing.
        path = Path(os.path.normpath(self._root / value))
        if not path.is_relative_to(self._root):
            self.wrong(f"{name!r}: {value!r} leaves the folder {self._root}; move the file there or set root")
            return None
        return path


def mask_beside(picture: Path) -> Path | None:
    """The mask of a picture as SynCD keeps it: masks/NAME.png or .jpg in its folder; or None."""
    for suffix in (".png", ".jpg"):
        mask = picture.parent / "masks" / (picture.stem + suffix)
        if mask.is_file():
            return mask
    return None


def read_text(path: Path) -> str:
    """A whole UTF-8 file, with or without a byte order mark. Raises DataError, one line."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8"]) from error
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror}); correct the path"]) from error


def unrepeated(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` of `json.loads` that raises ValueError for a key given twice."""
    fields: dict[str, Any] = {}
    for key, value in items:
        if key in fields:
            raise ValueError(f"the key {shown(key)} is given twice")
        fields[key] = value
    return fields


def shown(value: object) -> str:
    """A value as a message shows it: on one line, of bounded length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
