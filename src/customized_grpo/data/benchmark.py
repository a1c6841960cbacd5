"""Benchmarks: cases (subject and prompt), the images that a model is shown, and those that its images are compared to.

DreamBench, alone or in combinations of two subjects; or any other dataset, each pair of which is a subject of its own.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from customized_grpo.config import DataConfig
from customized_grpo.data import WORLDS, dreambench, open_dataset
from customized_grpo.data.errors import DataError
from customized_grpo.data.records import FilePairs, Record, clean_text, mask_beside, parse_json, read_bytes, shown
from customized_grpo.protocols import Pair, PairDataset


@dataclass(frozen=True)
class Case:
    """One subject, or combination of subjects, and one prompt.

    `prompt` is the number of `text` among the subject's prompts; `kind` is one of `dreambench.PROMPT_KINDS`, or None if
    the data has no kinds; `photos` are those of DreamBench that the model is shown, one of each subject.
    """

    subject: str
    prompt: int
    text: str
    kind: str | None = None
    photos: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """Unique name, "subject/prompt", with the prompt's number in two digits."""
        return f"{self.subject}/{self.prompt:02}"


@dataclass(frozen=True)
class Benchmark:
    """Cases and their images; `digest` is a hash of all prompts and images, `masked` whether every image has a mask.

    `shown` returns the pair that the model sees: one image of each subject, and the prompt. `views` returns all images
    of the case's subjects, one pair for each subject.
    """

    name: str
    units: str
    cases: tuple[Case, ...]
    digest: str
    masked: bool
    shown: Callable[[Case], Pair]
    views: Callable[[Case], list[Pair]]


def open_benchmark(path: str, *, two_subjects: bool = False, combined: Path | None = None) -> Benchmark:
    """Open a DreamBench folder, or any other data that `data.path` may name. Raises DataError.

    `two_subjects` asks for two of DreamBench's subjects in one image, by `default_combinations` or by the JSON file
    `combined`: a list of [SUBJECT, SUBJECT], or records of `prompt` and `image_paths`, as UNO has them.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if two_subjects or combined is not None:
            raise DataError([f"{path}: two subjects need DreamBench; give its folder"])
        # The built-in world has the same pairs as in the evaluation of a run.
        config = DataConfig(path=path, split="held-out", size=96, seed=1) if path in WORLDS else DataConfig(path=path)
        return _each_pair(f"the built-in {path}" if path in WORLDS else folder.name, open_dataset(config))
    folder = dreambench.dreambench_folder(folder)
    listing = dreambench.read_list(folder / dreambench.LIST)
    photos = dreambench.read_photos(folder, listing)

    def ask(*subjects: str) -> list[Case]:
        name, shown = "+".join(subjects), tuple(photos[subject][0] for subject in subjects)
        texts = zip(listing.prompts(*subjects), listing.templates(subjects), strict=True)
        return [
            Case(name, number, text, dreambench.prompt_kind(template), shown)
            for number, (text, template) in enumerate(texts)
        ]

    if combined is not None:
        return _dreambench(listing, photos, _read_combinations(combined, folder, listing, ask))
    groups = default_combinations(folder) if two_subjects else [(subject,) for subject in listing.classes]
    return _dreambench(listing, photos, [case for group in groups for case in ask(*group)])


def _dreambench(listing: dreambench.Listing, photos: dict[str, tuple[Path, ...]], cases: list[Case]) -> Benchmark:
    masks = {photo: mask_beside(photo) for found in photos.values() for photo in found}

    def record(key: str, text: str, files: tuple[Path, ...]) -> Record:
        words = " and ".join(listing.classes[subject] for subject in dict.fromkeys(file.parent.name for file in files))
        return Record(key, key, text, files, tuple(map(masks.get, files)), words)

    all_photos = FilePairs([record(f"{subject}/photos", subject, found) for subject, found in photos.items()], "")
    hasher = hashlib.blake2b(digest_size=8)
    for case in cases:
        hasher.update(repr((case.key, case.text, [photo.name for photo in case.photos])).encode())
    for photo, mask in masks.items():
        hasher.update(photo.name.encode() + photo.read_bytes() + (mask.read_bytes() if mask else b""))
    index = {subject: i for i, subject in enumerate(photos)}
    read = lru_cache(maxsize=2)(all_photos.__getitem__)  # a subject's cases follow each other
    alone = all(len(case.photos) == 1 for case in cases)
    return Benchmark(
        name="DreamBench" if alone else "DreamBench, two subjects",
        units="subjects" if alone else "combinations",
        cases=tuple(cases),
        digest=hasher.hexdigest(),
        masked=all(masks.values()),
        shown=lambda case: record(case.key, case.text, case.photos).load(),
        views=lambda case: [replace(read(index[photo.parent.name]), prompt=case.text) for photo in case.photos],
    )


def _each_pair(name: str, pairs: PairDataset) -> Benchmark:
    cases, masked = [], True
    hasher = hashlib.blake2b(digest_size=8)
    for i in range(len(pairs)):  # one at a time, because they may not all fit into memory
        pair = pairs[i]
        cases.append(Case(f"{i:05}", 0, pair.prompt))
        masked &= None not in pair.masks
        hasher.update(pair.prompt.encode())
        for image in (*pair.references, *pair.masks):
            hasher.update(b"" if image is None else image.tobytes())
    return Benchmark(
        name, "pairs", tuple(cases), hasher.hexdigest(), masked,
        shown=lambda case: pairs[int(case.subject)], views=lambda case: [pairs[int(case.subject)]],
    )  # fmt: skip


def default_combinations(folder: Path) -> list[tuple[str, str]]:
    """Return as many combinations of two as there are subjects, each subject in two of them.

    Each is combined with the one that follows it at the smallest distance in the benchmark's list at which no two of
    one class meet. Raises DataError if there is no such distance.
    """
    classes = dreambench.read_list(folder / dreambench.LIST).classes
    names = list(classes)
    for distance in range(1, (len(names) + 1) // 2):
        found = list(zip(names, names[distance:] + names[:distance], strict=True))
        if all(classes[one] != classes[other] for one, other in found):
            return found
    raise DataError([f"{folder}: no combinations of two classes for all subjects; name them in a file, --combinations"])


def select(benchmark: Benchmark, subjects: Iterable[str], prompts: Iterable[int]) -> tuple[Case, ...]:
    """Return the cases of these subjects and numbers of prompts; an empty selection means all. Raises DataError."""
    names, numbers = list(subjects), list(prompts)
    known = dict.fromkeys(case.subject for case in benchmark.cases)
    if unknown := [name for name in names if name not in known]:
        some = ", ".join(list(known)[:40])
        raise DataError([f"--subject {unknown[0]!r}: {benchmark.name} has no such subject; it has {some}"])
    most = max(case.prompt for case in benchmark.cases)
    if outside := [number for number in numbers if not 0 <= number <= most]:
        raise DataError([f"--prompt {outside[0]}: {benchmark.name} has prompts 0 to {most}"])
    return tuple(
        case
        for case in benchmark.cases
        if (not names or case.subject in names) and (not numbers or case.prompt in numbers)
    )


def _read_combinations(
    path: Path, folder: Path, listing: dreambench.Listing, ask: Callable[..., list[Case]]
) -> list[Case]:
    entries = parse_json(read_bytes(path), str(path), "correct it")
    if not isinstance(entries, list) or not entries:
        raise DataError([f"{path}: not a list; write [[SUBJECT, SUBJECT], ...] or records of prompt and image_paths"])
    cases: list[Case] = []
    problems = []
    for number, entry in enumerate(entries, start=1):
        try:
            files = entry["image_paths"] if isinstance(entry, dict) else None
            names = [Path(file).parent.name for file in files] if files else entry
            if len(names) != 2 or not set(names) <= listing.classes.keys() or names[0] == names[1]:
                raise ValueError(f"{shown(names)} are not two subjects of {dreambench.LIST}; correct it")
            if files:
                text = " ".join(clean_text(entry["prompt"]).split())
                photos = tuple(folder / name / Path(file).name for name, file in zip(names, files, strict=True))
                if absent := [photo for photo in photos if not photo.is_file()]:
                    raise ValueError(f"no such file {absent[0]}; restore it or name another photo")
                subject = "+".join(names)
                number = sum(case.subject == subject for case in cases)
                cases.append(Case(subject, number, text, listing.kind(text), photos))
            else:
                cases += ask(*names)
        except (KeyError, TypeError):
            form = "write [SUBJECT, SUBJECT], or an object with prompt and two image_paths"
            problems.append(f"{path}: entry {number}: {shown(entry)} is of no known form; {form}")
        except ValueError as error:
            problems.append(f"{path}: entry {number}: {error}")
    if problems:
        raise DataError(problems)
    return cases
