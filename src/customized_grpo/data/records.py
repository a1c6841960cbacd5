"""Records of pairs, as files describe them: validation, and a dataset that loads their images on demand."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo

from customized_grpo.config import DataConfig
from customized_grpo.data import image_files
from customized_grpo.data.errors import DataError
from customized_grpo.protocols import Pair
from customized_grpo.utils.prompts import encoding_problem, has_letters
from customized_grpo.utils.records import RecordError, read_regular

#: Above this number of images, only JPEGs are decoded by the check; other formats are checked by header and checksum.
THOROUGH = 4000


def shown(value: object) -> str:
    """Return the value for a message: on one line, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def clean_text(value: object) -> str:
    """Return a text without surrounding space. Raises ValueError if it is not a text, is empty or is not UTF-8."""
    if isinstance(value, str) and (problem := encoding_problem(value)):
        raise ValueError(problem)
    if not isinstance(value, str) or not has_letters(value):
        raise ValueError(f"is {shown(value)}; give a text that is not empty")
    return value.strip()


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"is {shown(value)}; give a list of texts")
    return [clean_text(text) for text in value]


def _paths(value: object, info: ValidationInfo) -> tuple[Path | None, ...]:
    """Resolve one path or a list of them; of masks, None stands for no file."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("is an empty list; give one path or more")
    root = Path(info.context or "")
    return tuple(None if one is None and info.field_name == "masks" else _path(one, root) for one in values)


def _path(value: object, root: Path) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"holds {shown(value)}; give the path of a file")
    # Only the text of the path is checked: links inside the folder were made by its owner.
    path = Path(os.path.normpath(root / value))
    if not path.is_relative_to(root):
        raise ValueError(f"is {value!r}, which leaves the folder {root}; move the file there or set data.root")
    return path


Text = Annotated[str, PlainValidator(clean_text)]
OptionalText = Annotated[str | None, PlainValidator(clean_text)]
Paths = Annotated[tuple[Path, ...], PlainValidator(_paths)]


class _RecordModel(BaseModel):
    model_config = ConfigDict(extra="allow")


class PairRecord(_RecordModel):
    """One pair. Several keys are accepted for a field, because SynCD, UNO and others use different ones."""

    prompt: Text = Field(validation_alias=AliasChoices("prompt", "caption", "text"))
    references: Paths = Field(
        validation_alias=AliasChoices(
            *("references", "reference", "reference_images", "images", "image_paths", "image_path", "file_name")
        )
    )
    masks: Annotated[tuple[Path | None, ...], PlainValidator(_paths)] = Field(
        (), validation_alias=AliasChoices("masks", "mask")
    )
    subject: OptionalText = None
    key: OptionalText = None


class ImageSetRecord(_RecordModel):
    """Several images of one object with a prompt each, as in SynCD's metadata."""

    filenames: Paths
    prompts: Annotated[list[str], PlainValidator(_texts)]
    subject: OptionalText = Field(None, validation_alias=AliasChoices("subject", "category"))


M = TypeVar("M", bound=_RecordModel)


def validate(model: type[M], where: str, item: Mapping[str, Any], root: Path) -> tuple[M, dict[str, Any]]:
    """Return a decoded JSON object as a record, whose paths start from `root` and stay inside, and the unused keys.

    Null stands for a key that is not given. Raises DataError, one line that begins with `where` each.
    """
    values = {key: value for key, value in item.items() if value is not None}
    if twice := [name for name in ("reference", "mask") if {name, f"{name}s"} <= values.keys()]:
        raise DataError(f"{where}: '{name}s' and {name!r} are both given; keep one" for name in twice)
    try:
        record = model.model_validate(values, context=Path(os.path.abspath(root)))
    except ValidationError as error:
        raise DataError(
            f"{where}: no {detail['loc'][0]!r}; add it"
            if detail["type"] == "missing"
            else f"{where}: {detail['loc'][0]!r} {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors()
        ) from error
    unused = (record.model_extra or {}).keys() | item.keys() - values.keys() - model.model_fields.keys()
    return record, {key: value for key, value in item.items() if key in unused}


def parse_json(content: bytes, where: str, remedy: str) -> Any:
    """Decode JSON. Raises DataError for bad UTF-8, bad JSON, deep nesting and a key that is given twice."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise DataError([f"{where}: not UTF-8 at byte {error.start}; save it as UTF-8"]) from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError([f"{where}: not valid JSON ({reason}); {remedy}"]) from error


def read_bytes(path: Path) -> bytes:
    """Read a file without its byte order mark. Raises DataError, one line."""
    try:
        return read_regular(path).removeprefix(b"\xef\xbb\xbf")
    except RecordError as error:
        raise DataError([str(error)]) from None
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror}); correct the path"]) from error


def _without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(items)
    if len(fields) < len(items):
        names = [name for name, _ in items]
        raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} is given twice")
    return fields


@dataclass(frozen=True)
class Record:
    """One validated pair whose images are still files. `where` is its file and line, for messages."""

    where: str
    key: str
    prompt: str
    references: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    subject: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Pair:
        """Read the images and masks."""
        references = tuple(image_files.load(path) for path in self.references)
        masks = tuple(
            image_files.load_mask(path, reference.size) if path else None
            for path, reference in zip(self.masks, references, strict=True)
        )
        return Pair(self.key, self.prompt, references, masks, self.subject, self.columns)


class FilePairs:
    """Dataset of records. Every pair has the columns of all records, None where its own record lacks one.

    Raises DataError for `problems` found before and those found here: no record, a repeated key, a broken file.
    """

    config: DataConfig | None = None

    def __init__(self, records: Sequence[Record], origin: str, problems: Sequence[str] = ()) -> None:
        self.records = tuple(records)
        self._columns = list(dict.fromkeys(name for record in records for name in record.columns))
        found = [*problems] if records or problems else [f"{origin}: holds no pairs; add one"]
        if found := found + self._repeated_keys() + self._broken_files():
            raise DataError(found)

    @property
    def prompts(self) -> list[str]:
        """Prompts of all pairs."""
        return [record.prompt for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Pair:
        record = self.records[index]
        return replace(record.load(), columns={name: record.columns.get(name) for name in self._columns})

    def _repeated_keys(self) -> list[str]:
        first: dict[str, str] = {}
        return [
            f"{record.where}: the key {record.key!r} is that of {other} too; give each its own"
            for record in self.records
            if (other := first.setdefault(record.key, record.where)) != record.where
        ]

    def _broken_files(self) -> list[str]:
        # An image is checked and reported once, however many records contain it.
        references = {path: record.where for record in reversed(self.records) for path in record.references}
        masks = {path: record.where for record in reversed(self.records) for path in record.masks if path}
        check = partial(image_files.check, quick=len(references) > THOROUGH)
        broken = [(references[path], text) for path, text in image_files.problems(references, check).items()]
        broken += [(masks[path], text) for path, text in image_files.problems(masks, image_files.load_mask).items()]
        order = {record.where: i for i, record in enumerate(self.records)}
        return [f"{where}: {text}" for where, text in sorted(broken, key=lambda item: order[item[0]])]


def mask_beside(image: Path) -> Path | None:
    """Return the mask of an image by SynCD's convention, masks/NAME.png or .jpg in its folder, if there is one."""
    candidates = (image.parent / "masks" / (image.stem + suffix) for suffix in (".png", ".jpg"))
    try:
        return next((mask for mask in candidates if mask.is_file()), None)
    except OSError:  # a name too long, which is reported for the image itself
        return None
