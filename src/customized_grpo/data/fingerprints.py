"""Fingerprints of datasets, by which a resumed run recognises other data."""

import hashlib

from torch.utils.data import Subset

from customized_grpo.data.records import FilePairs, Record
from customized_grpo.protocols import PairDataset

#: `pairs`: their number. Of files also hashes of the ordered `keys`, and of the pairs' `content`: texts and file sizes.
Fingerprint = dict[str, int | str]


def fingerprint(dataset: PairDataset) -> Fingerprint:
    """Return the fingerprint of a dataset, without reading an image; of one in Python, its length alone."""
    found: Fingerprint = {"pairs": len(dataset)}
    records = _records(dataset)
    if records is not None:
        found["keys"] = _digest([record.key for record in records])
        found["content"] = _digest([_content(record) for record in records])
    return found


def difference(before: Fingerprint, now: Fingerprint) -> str | None:
    """Return how a dataset differs from an earlier one; None if it does not, as far as is known of both."""
    known = before.keys() & now.keys()
    if "pairs" in known and before["pairs"] != now["pairs"]:
        return f"{before['pairs']} pairs, now {now['pairs']}"
    if "keys" in known and before["keys"] != now["keys"]:
        return "other pairs, or another order of them"
    if "content" in known and before["content"] != now["content"]:
        return "the same keys, but other prompts, columns or files"
    return None


def _records(dataset: object) -> list[Record] | None:
    if isinstance(dataset, Subset) and (inner := _records(dataset.dataset)) is not None:
        return [inner[i] for i in dataset.indices]
    return list(dataset.records) if isinstance(dataset, FilePairs) else None


def _content(record: Record) -> object:
    paths = (*record.references, *record.masks)
    sizes = [path.stat().st_size if path is not None and path.exists() else None for path in paths]
    return record.prompt, record.subject, sorted(record.columns.items()), sizes


def _digest(values: list[object] | list[str]) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()
