"""What a benchmark asks of a model: subjects, prompts, photos to show it and photos to hold its pictures against.

DreamBench, alone or in combinations of two subjects; or the pairs of any other dataset, each a subject of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from customized_grpo.config import DataConfig
from customized_grpo.data import WORLDS, dreambench, open_dataset, pictures
from customized_grpo.data.errors import DataError
from customized_grpo.data.records import mask_beside, read_text
from customized_grpo.protocols import Pair, PairDataset

SUBJECTS_JOINED = "+"  #: between the names of a combination


@dataclass(frozen=True)
class Case:
    """One subject, or combination of subjects, and one prompt.

    `subject` is the name of a folder; `prompt` is the number of `text` among the subject's prompts; `kind` is one of
    `dreambench.PROMPT_KINDS`, or None where the data knows of none.
    """

    subject: str
    prompt: int
    text: str
    kind: str | None = None

    @property
    def key(self) -> str:
        return f"{self.subject}/{self.prompt:02}"


class Benchmark(Protocol):
    """`units` is what its subjects are called, in the plural; `digest` is another where any prompt or photo is;
    `masked` says whether every photo has a mask.
    """

    name: str
    units: str
    cases: tuple[Case, ...]
    digest: str
    masked: bool

    def shown(self, case: Case) -> Pair:
        """What the model sees: one photo of each subject, and the prompt."""
        ...

    def views(self, case: Case) -> list[Pair]:
        """All photos of each of the case's subjects, one pair for each subject."""
        ...


class DreamBench:
    """DreamBench's subjects, or `groups` of them, by all prompts of its list.

    The model sees the first photo of a subject in name order, unless `asked` says otherwise: (subjects, their photos,
    prompt) of every case. Raises DataError where a photo is missing or damaged.
    """

    def __init__(
        self,
        folder: Path,
        groups: Sequence[tuple[str, ...]] | None = None,
        asked: Sequence[tuple[tuple[str, ...], tuple[Path, ...], str]] | None = None,
    ) -> None:
        self._listing = dreambench.read_list(folder / dreambench.LIST)
        self._photos = {name: tuple(dreambench.photos_of(folder / name)) for name in self._listing.classes}
        problems = [
            f"{folder / name}: no photos of a subject of {dreambench.LIST}; restore its folder or remove its line"
            for name, photos in self._photos.items()
            if not photos
        ]
        photos = [photo for found in self._photos.values() for photo in found]
        masks = {photo: mask_beside(photo) for photo in photos}
        problems += pictures.problems(photos, pictures.check).values()
        problems += pictures.problems((mask for mask in masks.values() if mask), pictures.check_mask).values()
        if problems:
            raise DataError(problems)
        self._masks = masks
        self.masked = all(masks.values())
        self._shown: dict[str, tuple[tuple[str, Path], ...]] = {}
        self.cases = self._asked(asked) if asked else self._all(groups or [(name,) for name in self._listing.classes])
        alone = all(len(parts) == 1 for parts in self._shown.values())
        self.name = "DreamBench" if alone else "DreamBench, two subjects"
        self.units = "subjects" if alone else "combinations"
        hasher = hashlib.blake2b(digest_size=8)
        for case in self.cases:
            hasher.update(repr((case.key, case.text, [photo.name for _, photo in self._shown[case.key]])).encode())
        for photo, mask in masks.items():
            hasher.update(photo.name.encode() + photo.read_bytes())
            hasher.update(mask.read_bytes() if mask else b"")
        self.digest = hasher.hexdigest()

    def shown(self, case: Case) -> Pair:
        parts = self._shown[case.key]
        read = [self._read(photo) for _, photo in parts]
        references, masks = zip(*read, strict=True)
        return Pair(case.key, case.text, references, masks, self._word([name for name, _ in parts]))

    def views(self, case: Case) -> list[Pair]:
        found = []
        for name, _ in self._shown[case.key]:
            references, masks = zip(*map(self._read, self._photos[name]), strict=True)
            found.append(Pair(f"{name}/photos", case.text, references, masks, self._word([name])))
        return found

    def _all(self, groups: Sequence[tuple[str, ...]]) -> tuple[Case, ...]:
        cases = []
        for group in groups:
            subject = SUBJECTS_JOINED.join(group)
            templates = self._listing.templates(group)
            for i, (text, template) in enumerate(zip(self._listing.prompts(*group), templates, strict=True)):
                cases.append(Case(subject, i, text, dreambench.prompt_kind(template)))
                self._shown[cases[-1].key] = tuple((name, self._photos[name][0]) for name in group)
        return tuple(cases)

    def _asked(self, asked: Sequence[tuple[tuple[str, ...], tuple[Path, ...], str]]) -> tuple[Case, ...]:
        cases: list[Case] = []
        for group, photos, text in asked:
            subject = SUBJECTS_JOINED.join(group)
            number = sum(case.subject == subject for case in cases)
            cases.append(Case(subject, number, text, self._listing.kind(text)))
            self._shown[cases[-1].key] = tuple(zip(group, photos, strict=True))
        return tuple(cases)

    def _word(self, names: Sequence[str]) -> str:
        return " and ".join(self._listing.classes[name] for name in names)

    @lru_cache(maxsize=16)  # noqa: B019 - photos of a few subjects; a benchmark lives as long as its process
    def _read(self, photo: Path) -> tuple[Any, Any]:
        picture, mask = pictures.load(photo), self._masks[photo]
        return picture, pictures.load_mask(mask, picture.size) if mask else None


class EachPair:
    """Any dataset: each pair is a subject of its own, with its one prompt; its references are all its photos."""

    def __init__(self, name: str, pairs: PairDataset) -> None:
        self.name, self.units = name, "pairs"
        self._pairs = pairs
        self.masked = True
        cases = []
        hasher = hashlib.blake2b(digest_size=8)
        for i in range(len(pairs)):  # one at a time: they may not all fit into memory
            pair = pairs[i]
            cases.append(Case(f"{i:05}", 0, pair.prompt))
            self.masked &= all(mask is not None for mask in pair.masks)
            hasher.update(pair.prompt.encode())
            for picture in (*pair.references, *pair.masks):
                hasher.update(b"" if picture is None else picture.tobytes())
        self.cases = tuple(cases)
        self.digest = hasher.hexdigest()

    def shown(self, case: Case) -> Pair:
        return self._pairs[int(case.subject)]

    def views(self, case: Case) -> list[Pair]:
        return [self.shown(case)]


def open_benchmark(path: str, *, two_subjects: bool = False, combined: Path | None = None) -> Benchmark:
    """DreamBench in the folder `path`; of any other data that `data.path` may name, each pair.

    `two_subjects` asks for pictures of two of DreamBench's subjects together: the combinations of the file `combined`
    (see `_read_combinations`), or those of `default_combinations`. Raises DataError, one line for each problem.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        root = next((one for one in (folder, folder / "dataset") if (one / dreambench.LIST).is_file()), None)
        if root is None:
            raise DataError([f"{folder}: has no {dreambench.LIST}; give a DreamBench folder"])
        if combined is not None:
            groups, asked = _read_combinations(combined, root)
            return DreamBench(root, groups, asked)
        return DreamBench(root, default_combinations(root) if two_subjects else None)
    if two_subjects or combined is not None:
        raise DataError([f"{path}: two subjects are asked of DreamBench alone; give its folder"])
    # Of the built-in world the same pairs as a run's evaluation has.
    config = DataConfig(path=path, split="held-out", size=96, seed=1) if path in WORLDS else DataConfig(path=path)
    return EachPair(f"the built-in {path}" if path in WORLDS else folder.name, open_dataset(config))


def default_combinations(folder: Path) -> list[tuple[str, str]]:
    """As many combinations of two as there are subjects, each subject in two of them.

    Each goes with the one that stands so many places after it in the benchmark's list, the last with the first: the
    least number of places at which no two of one class meet. Of the 30 subjects that makes 30 combinations, the
    published number; which ones others took is not written in the benchmark. Raises DataError where there is no such
    number.
    """
    classes = dreambench.read_list(folder / dreambench.LIST).classes
    names = list(classes)
    for apart in range(1, (len(names) + 1) // 2):
        found = [(name, names[(i + apart) % len(names)]) for i, name in enumerate(names)]
        if all(classes[one] != classes[other] for one, other in found):
            return found
    raise DataError([f"{folder}: no combinations of two classes for all subjects; name them in a file, --combinations"])


def select(benchmark: Benchmark, subjects: Iterable[str], prompts: Iterable[int]) -> tuple[Case, ...]:
    """The cases of these subjects and of prompts of these numbers; of all, where none is named. Raises DataError."""
    names, numbers = list(subjects), list(prompts)
    known = list(dict.fromkeys(case.subject for case in benchmark.cases))
    if unknown := [name for name in names if name not in known]:
        has = ", ".join(known[:40])
        raise DataError([f"--subject {unknown[0]!r}: {benchmark.name} has no such subject; it has {has}"])
    most = max(case.prompt for case in benchmark.cases)
    if outside := [number for number in numbers if not 0 <= number <= most]:
        raise DataError([f"--prompt {outside[0]}: {benchmark.name} has prompts 0 to {most}"])
    return tuple(
        case
        for case in benchmark.cases
        if (not names or case.subject in names) and (not numbers or case.prompt in numbers)
    )


def _read_combinations(
    path: Path, folder: Path
) -> tuple[list[tuple[str, ...]] | None, list[tuple[tuple[str, ...], tuple[Path, ...], str]] | None]:
    """(combinations, None) of a JSON list of [subject, subject]; (None, cases) of a list of records.

    A record is one case as UNO's `dreambench_multiip.json` has it, with the keys `prompt` and `image_paths`: the last
    two parts of a path are the subject and its photo, which is looked for in `folder`. Raises DataError.
    """
    try:
        entries = json.loads(read_text(path))
    except ValueError as error:
        raise DataError([f"{path}: not valid JSON ({error}); correct it"]) from error
    if not isinstance(entries, list) or not entries:
        raise DataError([f"{path}: not a list; write [[SUBJECT, SUBJECT], ...] or records of prompt and image_paths"])
    known = dreambench.read_list(folder / dreambench.LIST).classes
    problems: list[str] = []
    groups: list[tuple[str, ...]] = []
    asked: list[tuple[tuple[str, ...], tuple[Path, ...], str]] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: entry {number}"
        record = isinstance(entry, dict)
        named = entry.get("image_paths") if record else entry
        texts = named if isinstance(named, list) and all(isinstance(one, str) for one in named) else []
        parts = [Path(one).parent.name for one in texts] if record else texts
        if len(set(parts)) != 2 or len(parts) != 2:
            problems.append(f"{where}: names no two subjects; write [SUBJECT, SUBJECT], or prompt and two image_paths")
            continue
        if unknown := [name for name in parts if name not in known]:
            problems.append(f"{where}: {unknown[0]!r} is no subject of {dreambench.LIST}; correct it")
            continue
        if not record:
            groups.append(tuple(parts))
            continue
        photos = tuple(folder / name / Path(one).name for name, one in zip(parts, texts, strict=True))
        if not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
            problems.append(f"{where}: no prompt; add it")
        elif absent := [photo for photo in photos if not photo.is_file()]:
            problems.append(f"{where}: {absent[0]} is not there; restore it or name another photo")
        else:
            asked.append((tuple(parts), photos, " ".join(entry["prompt"].split())))
    if groups and asked:
        problems.append(f"{path}: holds both combinations and records; keep one kind")
    for one, other in combinations(groups, 2):
        if set(one) == set(other):
            problems.append(f"{path}: {SUBJECTS_JOINED.join(one)} is named twice; remove one")
    if problems:
        raise DataError(problems)
    return (groups, None) if groups else (None, asked)
