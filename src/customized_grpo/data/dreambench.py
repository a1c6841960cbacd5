"""DreamBench, the benchmark of DreamBooth (arXiv 2208.12242): 30 subjects x 25 prompts.

The folder has one folder of photos for each subject and `prompts_and_classes.txt`, the benchmark's
own file: a table of subjects and class words, and two lists of 25 prompts, for objects and for live
subjects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.data.errors import DataError
from customized_grpo.data.records import FilePairs, Record, mask_beside, read_text

LIST = "prompts_and_classes.txt"
#: Classes that get the live prompts: the paper counts 9 live subjects, its cats and dogs. Plush
#: animals are objects.
LIVE = frozenset({"cat", "dog"})
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_TEMPLATE = re.compile(r"""(['"])(?P<text>.*)\1\s*\.format\(\s*unique_token\s*,\s*class_token\s*\)\s*,?""")


@dataclass(frozen=True)
class Benchmark:
    """What the list says: class words by subject, and templates with {1} for the class word."""

    classes: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def prompts(self, subject: str) -> list[str]:
        """The prompts of one subject, without DreamBooth's unique token."""
        word = self.classes[subject]
        templates = self.live if word in LIVE else self.objects
        article = "an" if word[0] in "aeiou" else "a"
        plain = (template.replace("a {0} {1}", article + " {1}", 1) for template in templates)
        return [" ".join(text.replace("{0}", "").replace("{1}", word).split()) for text in plain]


def open_dreambench(folder: Path, reference: int = 0) -> FilePairs:
    """The benchmark in `folder`, each subject shown by its photo number `reference` in name order.

    A subject's key is SUBJECT/NN, NN the number of the prompt in its list. `masks/NAME.png` in a
    subject's folder is the mask of its photo. Raises DataError where the list cannot be read or
    subjects are missing.
    """
    path = folder / LIST
    benchmark = read_list(path)
    problems = []
    records = []
    for subject in benchmark.classes:
        photos = _photos(folder / subject)
        if len(photos) <= reference:
            problems.append(
                f"{folder / subject}: {len(photos)} photos, but {LIST} names the subject and photo"
                f" {reference} is needed; restore its folder or remove its line"
            )
            continue
        shown = (photos[reference],)
        masks = (mask_beside(photos[reference]),)
        word = benchmark.classes[subject]
        for i, prompt in enumerate(benchmark.prompts(subject)):
            records.append(Record(str(path), f"{subject}/{i:02}", prompt, shown, masks, word))
    if problems:
        raise DataError(problems)
    return FilePairs(records, str(path))


def read_list(path: Path) -> Benchmark:
    """Parses `prompts_and_classes.txt`. Raises DataError, FILE:LINE for each problem."""
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object prompts": [], "live subject prompts": []}
    problems: list[str] = []
    section = ""
    for number, raw in enumerate(read_text(path).splitlines(), start=1):
        line = raw.strip()
        title = line.lower()
        if title in ("classes", "prompts", *prompts):
            section = title
        elif section == "classes" and line and line != "subject_name,class":
            problem = _add_subject(line, classes)
            if problem:
                problems.append(f"{path}:{number}: {problem}")
        elif section in prompts and line and line not in ("prompt_list = [", "]"):
            match = _TEMPLATE.fullmatch(line)
            if match is None or "{1}" not in match["text"]:
                problems.append(
                    f"{path}:{number}: {line!r} is no prompt;"
                    " write 'a {0} {1} ...'.format(unique_token, class_token)"
                )
            else:
                prompts[section].append(match["text"])
    objects, live = prompts.values()
    if not problems and not (classes and objects and live):
        problems.append(
            f"{path}: lacks the classes or one of the two lists of prompts; restore the benchmark's own file"
        )
    if problems:
        raise DataError(problems)
    return Benchmark(classes, tuple(objects), tuple(live))


def _add_subject(line: str, classes: dict[str, str]) -> str | None:
    subject, comma, word = (part.strip() for part in line.partition(","))
    if not (subject and comma and word):
        return f"{line!r} is no subject; write SUBJECT,CLASS"
    if Path(subject).name != subject or subject == "..":
        return f"{subject!r} is not the name of a folder; write it without slashes"
    if subject in classes:
        return f"the subject {subject!r} is given twice; remove one"
    classes[subject] = word
    return None


def _photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
