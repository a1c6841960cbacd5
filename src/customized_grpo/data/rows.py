"""Pairs from the rows of any indexable dataset: a list of dicts, a Hugging Face or torch dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.config.loading import nearest
from customized_grpo.data import pictures
from customized_grpo.data.errors import DataError
from customized_grpo.data.records import shown
from customized_grpo.protocols import Pair
from customized_grpo.utils.named import told
from customized_grpo.utils.prompts import check_prompt

_CHECKED = 4  # rows that are read whole when a dataset is opened


class Rows(Protocol):
    """Anything with a length and rows by their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RowPairs:
    """A PairDataset of rows, each a mapping from column names to values.

    Images are Pillow images, paths, bytes, or `{"bytes": ..., "path": ...}`. A row is read and checked when it is asked
    for; when the dataset is opened the first rows are, and all prompts and keys that can be read without the images,
    as those of a list or of a `datasets.Dataset`.

    Args:
        rows: The dataset.
        prompt: Column of the prompt.
        references: Column of the reference image, or of a list of them.
        masks: Column of the mask, or of a list with one for each reference, None where there is none.
        subject: Column of the class word.
        key: Column of a key that is unique and stable between runs. Default: the number of the row.

    Raises:
        DataError: No rows, a column that is not there, or a row that cannot be used; a line for each problem.
    """

    config: DataConfig | None = None

    def __init__(
        self, rows: Rows, prompt: str, references: str, masks: str | None, subject: str | None, key: str | None
    ) -> None:
        self._rows = rows
        self._prompt, self._references, self._masks, self._subject, self._key = prompt, references, masks, subject, key
        self._length = _length(rows)
        self._row_of: dict[str, int] = {}  # by key
        columns = list(self._row(0))
        if isinstance(rows, list | tuple):  # whose rows may have different keys
            columns = list(dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row))
        used = {"prompt": prompt, "references": references, "masks": masks, "subject": subject, "key": key}
        self._others = [name for name in columns if name not in used.values()]
        missing = {name: parameter for parameter, name in used.items() if name is not None and name not in columns}
        if missing:
            raise DataError(_no_column(name, parameter, columns) for name, parameter in missing.items())
        problems = self._problems()
        if problems:
            raise DataError(problems)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Pair:
        if not -self._length <= index < self._length:
            raise IndexError(f"pair {index} of {self._length}")
        index = int(index) % self._length
        row = self._row(index)
        references = self._references_of(index, row)
        return Pair(
            key=f"row {index}" if self._key is None else self._key_of(index, row, self._key),
            prompt=self._text(index, row, self._prompt),
            references=references,
            masks=self._masks_of(index, row, references),
            subject=None
            if self._subject is None or row.get(self._subject) is None
            else self._text(index, row, self._subject),
            columns={name: row.get(name) for name in self._others},
        )

    def _problems(self) -> dict[str, None]:
        """What is wrong with the first rows, and with all prompts and keys that can be read without the images."""
        checks: list[Callable[[], object]] = [partial(self.__getitem__, i) for i in range(min(self._length, _CHECKED))]
        for column, check in ((self._prompt, self._text), (self._key, self._key_of)):
            if column is not None and (values := _values(self._rows, column)) is not None:
                checks += [partial(check, i, {column: value}, column) for i, value in enumerate(values)]
        problems: dict[str, None] = {}
        for checked in checks:
            try:
                checked()
            except DataError as error:
                problems |= dict.fromkeys(error.problems)
        return problems

    def _row(self, index: int) -> Mapping[str, Any]:
        try:
            row = self._rows[index]
        except Exception as error:  # whatever a dataset of somebody else's raises
            raise DataError([f"row {index} cannot be read ({told(error)}); correct or remove it"]) from error
        if not isinstance(row, Mapping):
            raise DataError(
                [f"row {index} is a {type(row).__name__}; give rows that are dicts, one entry for each column"]
            )
        return row

    def _text(self, index: int, row: Mapping[str, Any], column: str) -> str:
        value = _value(index, row, column)
        if not isinstance(value, str):
            raise DataError([f"{_where(index, column)} is {shown(value)}; give a text"])
        try:
            check_prompt(value, _where(index, column))
        except ValueError as error:
            raise DataError([str(error)]) from error
        return value.strip()

    def _key_of(self, index: int, row: Mapping[str, Any], column: str) -> str:
        key = str(_value(index, row, column))
        other = self._row_of.setdefault(key, index)
        if other != index:
            raise DataError([f"{_where(index, column)} is {shown(key)}, as in row {other}; give each row its own"])
        return key

    def _references_of(self, index: int, row: Mapping[str, Any]) -> tuple[Image.Image, ...]:
        where, given = _where(index, self._references), _listed(_value(index, row, self._references))
        if not given:
            raise DataError([f"{where} is an empty list; give one image or more"])
        return tuple(pictures.load(*_source(one, where)) for one in given)

    def _masks_of(
        self, index: int, row: Mapping[str, Any], references: Sequence[Image.Image]
    ) -> tuple[Image.Image | None, ...]:
        if self._masks is None or row.get(self._masks) is None:
            return (None,) * len(references)
        where, given = _where(index, self._masks), _listed(row[self._masks])
        if len(given) != len(references):
            raise DataError([f"{where} has {len(given)} for {len(references)} references; give one each, or None"])
        masks = []
        for one, reference in zip(given, references, strict=True):
            source, place = (None, where) if one is None else _source(one, where)
            masks.append(None if source is None else pictures.load_mask(source, reference.size, place))
        return tuple(masks)


def _length(rows: Rows) -> int:
    name = type(rows).__name__
    if isinstance(rows, Mapping):
        splits = ", ".join(map(repr, list(rows)[:8]))
        raise DataError([f"from_dataset: a {name} of {splits} has no rows; give one of its values, such as a split"])
    try:
        length = len(rows)
    except TypeError as error:
        raise DataError([f"from_dataset: a {name} has no length; give a dataset with rows by index"]) from error
    if not hasattr(rows, "__getitem__"):
        raise DataError([f"from_dataset: a {name} has no rows by index; give a list or another indexable dataset"])
    if not length:
        raise DataError([f"from_dataset: the {name} holds no rows; add one"])
    return length


def _values(rows: Rows, column: str) -> list[Any] | None:
    """All values of a column, where reading them reads no images; None where it might."""
    if isinstance(rows, list | tuple):
        return [row.get(column) if isinstance(row, Mapping) else None for row in rows]
    names: Any = getattr(rows, "column_names", None)  # as datasets.Dataset has it
    if not isinstance(names, list) or column not in names or getattr(rows, "format", {}).get("type") == "custom":
        return None
    values: Any = rows
    return list(values[column])


def _no_column(name: str, parameter: str, columns: Sequence[str]) -> str:
    near = nearest(name, columns)
    remedy = f"did you mean {near!r}?" if near else f"name one of {', '.join(map(repr, columns[:20]))}"
    return f"from_dataset: {parameter} is {name!r}, which is no column; {remedy}"


def _where(index: int, column: str) -> str:
    return f"row {index}, column {column!r}"


def _value(index: int, row: Mapping[str, Any], column: str) -> Any:
    if row.get(column) is None:
        raise DataError([f"{_where(index, column)} has no value; give one or remove the row"])
    return row[column]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _source(value: Any, where: str) -> tuple[pictures.Source, str]:
    """What `pictures` loads, and where it is, for messages."""
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():  # an image of `datasets` that is not decoded
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, Image.Image | bytes):
        return value, where
    if isinstance(value, str | Path):
        return Path(value), f"{where}: {value}"
    raise DataError([f"{where} holds a {type(value).__name__}; give a Pillow image, a path, or the bytes of a file"])
