"""Datasets of pairs, from Python. All are checked when they are opened; DataError lists all problems."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, open_dataset
from customized_grpo.data.rows import RowPairs, Rows
from customized_grpo.protocols import PairDataset

__all__ = ["DataError", "from_dataset", "from_dreambench", "from_imagefolder", "from_jsonl", "from_syncd", "world"]


def from_jsonl(path: str | Path, root: str | Path | None = None, *, size: int | None = None) -> PairDataset:
    """Open a file of JSON lines, each `{"prompt": ..., "references": [...]}`.

    Args:
        path: A .jsonl file. Keys other than `prompt`, `references`, `masks`, `subject` and `key` are columns.
        root: Folder that paths in the file start from. Default: the file's own.
        size: Number of pairs to take, evenly spread over the file. Default: all.
    """
    return _open(path, (".jsonl", ".ndjson"), root=root, size=size)


def from_syncd(path: str | Path, root: str | Path | None = None, *, size: int | None = None) -> PairDataset:
    """Open a .json file with a list of records, as those of SynCD or UNO; arguments as for `from_jsonl`."""
    return _open(path, (".json",), root=root, size=size)


def from_imagefolder(folder: str | Path, *, size: int | None = None) -> PairDataset:
    """Open a folder of images with metadata.jsonl (`file_name`, `text`), or with a caption NAME.txt beside each."""
    if not Path(folder).expanduser().is_dir():
        raise DataError([f"{folder}: no such folder; give the folder of the images"])
    return _open(folder, (), size=size)


def from_dreambench(folder: str | Path, *, size: int | None = None) -> PairDataset:
    """Open a DreamBench folder: a folder of images for each subject, and prompts_and_classes.txt."""
    if not Path(folder).expanduser().is_dir():
        raise DataError([f"{folder}: no such folder; give the folder that holds prompts_and_classes.txt"])
    return _open(folder, (), size=size)


def world(
    split: Literal["train", "held-out"] = "train", size: int | None = None, seed: int = 0, *, recoloured: bool = False
) -> PairDataset:
    """Return pairs of the built-in world, generated when they are read.

    Args:
        split: Subjects and prompts to train on, or others, for evaluation.
        size: Number of pairs. Default: 4096.
        seed: Another seed gives other pairs.
        recoloured: Whether every prompt asks for the subject in another colour.
    """
    return _open("world-recoloured" if recoloured else "world", (), split=split, size=size, seed=seed)


def from_dataset(
    dataset: Rows,
    prompt: str = "prompt",
    references: str = "references",
    masks: str | None = None,
    subject: str | None = None,
    key: str | None = None,
) -> PairDataset:
    """Return the rows of a dataset as pairs: a `datasets.Dataset`, a list of dicts, a torch dataset of dicts.

    All columns that are not named here are `Pair.columns`, and so arguments of rewards.

    Args:
        dataset: Anything with a length, and rows by index that are mappings.
        prompt: Column of the prompt.
        references: Column of the reference image, or of a list of them: Pillow images, paths, bytes, or
            `{"bytes": ..., "path": ...}`.
        masks: Column of the mask, white on the subject, or of a list with one for each reference.
        subject: Column of the class word, such as "dog".
        key: Column of a key that is unique and stable between runs. Default: the number of the row.
    """
    return RowPairs(dataset, prompt, references, masks, subject, key)


def _open(path: str | Path, suffixes: tuple[str, ...], **values: object) -> PairDataset:
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise DataError([f"{path}: the name does not end in {' or '.join(suffixes)}; give such a file"])
    try:
        config = DataConfig.model_validate({"path": str(path), **values})
    except ValidationError as error:
        raise DataError(f"{one['loc'][0]}: {one['input']!r}; {one['msg'].lower()}" for one in error.errors()) from error
    return open_dataset(config)
