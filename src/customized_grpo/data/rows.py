"""Dataset of pairs from the rows of any indexable dataset: a list of dicts, a Hugging Face or a torch dataset."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.config.reading import nearest
from customized_grpo.data import image_files
from customized_grpo.data.errors import DataError
from customized_grpo.data.records import clean_text, shown
from customized_grpo.protocols import Pair
from customized_grpo.utils.named import error_text

_CHECKED = 4  # rows that are read completely when a dataset is opened


class Rows(Protocol):
    """Anything with a length and rows by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RowPairs:
    """Rows as pairs; see `datasets.from_dataset` for the arguments.

    When it is created, the first rows are checked, and all prompts and keys that can be read without the images. Every
    other row is checked when it is read. Raises DataError, one line for each problem.
    """

    config: DataConfig | None = None

    def __init__(
        self, rows: Rows, prompt: str, references: str, masks: str | None, subject: str | None, key: str | None
    ) -> None:
        try:
            self._length = 0 if isinstance(rows, Mapping) or not hasattr(rows, "__getitem__") else len(rows)
        except TypeError:  # of an iterable dataset
            self._length = 0
        if not self._length:
            remedy = "give a list, one split of a datasets.DatasetDict, or another dataset with a length"
            raise DataError([f"from_dataset: a {type(rows).__name__} without rows by index; {remedy}"])
        self._rows, self._row_of_key = rows, dict[str, int]()
        self._prompt, self._references, self._masks, self._subject, self._key = prompt, references, masks, subject, key
        columns = list(self._row(0))
        if isinstance(rows, list | tuple):  # rows of a list may have different keys
            columns = list(dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row))
        used = {"prompt": prompt, "references": references, "masks": masks, "subject": subject, "key": key}
        self._others = [name for name in columns if name not in used.values()]
        problems = []
        for parameter, column in used.items():
            if column is not None and column not in columns:
                near = nearest(column, columns)
                remedy = f"did you mean {near!r}?" if near else f"name one of {', '.join(map(repr, columns[:20]))}"
                problems.append(f"from_dataset: {parameter} is {column!r}, which is not a column; {remedy}")
        if problems := problems or self._problems():
            raise DataError(problems)

    def __len__(self) -> int:
        return self._length

    @property
    def prompts(self) -> list[str] | None:
        """Prompts of all pairs, None if reading them would read images."""
        values = _values(self._rows, self._prompt)
        return None if values is None else [str(value) for value in values]

    def __getitem__(self, index: int, /) -> Pair:
        if not -self._length <= index < self._length:
            raise IndexError(f"pair {index} of {self._length}")
        index = int(index) % self._length
        row = self._row(index)
        where, given = f"row {index}, column {self._references!r}", _value(index, row, self._references)
        references = tuple(image_files.load(*_source(one, where)) for one in _listed(given))
        if not references:
            raise DataError([f"{where} is an empty list; give one image or more"])
        masks: tuple[Image.Image | None, ...] = (None,) * len(references)
        if self._masks is not None and row.get(self._masks) is not None:
            where, drawn = f"row {index}, column {self._masks!r}", _listed(row[self._masks])
            if len(drawn) != len(references):
                raise DataError([f"{where} has {len(drawn)} for {len(references)} references; give one each, or None"])
            masks = tuple(map(partial(_mask, where), drawn, references))
        subject = None if self._subject is None or row.get(self._subject) is None else self._subject
        return Pair(
            key=f"row {index}" if self._key is None else self._key_of(index, row, self._key),
            prompt=self._text(index, row, self._prompt),
            references=references,
            masks=masks,
            subject=None if subject is None else self._text(index, row, subject),
            columns={name: row.get(name) for name in self._others},
        )

    def _problems(self) -> list[str]:
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
        return list(problems)

    def _row(self, index: int) -> Mapping[str, Any]:
        try:
            row = self._rows[index]
        except Exception as error:  # anything that another library's dataset raises
            raise DataError([f"row {index} cannot be read ({error_text(error)}); correct or remove it"]) from error
        if not isinstance(row, Mapping):
            name = type(row).__name__
            raise DataError([f"row {index} is a {name}; give rows that are dicts, one entry for each column"])
        return row

    def _text(self, index: int, row: Mapping[str, Any], column: str) -> str:
        value = _value(index, row, column)
        try:
            return clean_text(value)
        except ValueError as error:
            raise DataError([f"row {index}, column {column!r} {error}"]) from error

    def _key_of(self, index: int, row: Mapping[str, Any], column: str) -> str:
        key = str(_value(index, row, column))
        if (other := self._row_of_key.setdefault(key, index)) != index:
            where = f"row {index}, column {column!r}"
            raise DataError([f"{where} is {shown(key)}, as in row {other}; give each row its own"])
        return key


def _values(rows: Rows, column: str) -> list[Any] | None:
    """Return all values of a column if reading them reads no images, else None."""
    if isinstance(rows, list | tuple):
        return [row.get(column) if isinstance(row, Mapping) else None for row in rows]
    names: Any = getattr(rows, "column_names", None)  # of a datasets.Dataset
    if not isinstance(names, list) or column not in names or getattr(rows, "format", {}).get("type") == "custom":
        return None
    values: Any = rows
    return list(values[column])


def _value(index: int, row: Mapping[str, Any], column: str) -> Any:
    if row.get(column) is None:
        raise DataError([f"row {index}, column {column!r} has no value; give one or remove the row"])
    return row[column]


def _mask(where: str, value: Any, reference: Image.Image) -> Image.Image | None:
    if value is None:
        return None
    source, place = _source(value, where)
    return image_files.load_mask(source, reference.size, place)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _source(value: Any, where: str) -> tuple[image_files.Source, str]:
    """Return the source of an image, and a description of it for messages."""
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():  # of a datasets.Image(decode=False) column
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, Image.Image | bytes):
        return value, where
    if isinstance(value, str | Path):
        return Path(value), f"{where}: {value}"
    raise DataError([f"{where} holds a {type(value).__name__}; give a Pillow image, a path, or the bytes of a file"])
