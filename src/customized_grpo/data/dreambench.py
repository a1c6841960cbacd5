"""DreamBench, the benchmark of DreamBooth (arXiv 2208.12242): 30 subjects x 25 prompts.

The folder has one folder of photos for each subject and `prompts_and_classes.txt`, the benchmark's
own file: a table of subjects and class words, and two lists of 25 prompts, for objects and for live
subjects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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


#: The subject's place in a template: its article, what is said of it before its name, and the name.
_NAMED = re.compile(r"\b(?P<article>an?) (?P<before>(?:(?!\ban? )[^{}])*)\{0\} \{1\}")
_STYLE = re.compile(r"\b(style|painting|drawing|sketch|sculpture)\b")
_ACCESSORY = re.compile(r"\b(wearing|outfit)\b")
#: Kinds of prompts, in the order in which they are told of. DreamBench's own have no style among them.
PROMPT_KINDS = ("place", "property", "accessory", "style")


@dataclass(frozen=True)
class Listing:
    """What the list says: class words by subject, and templates with {1} for the class word."""

    classes: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def templates(self, subjects: Sequence[str]) -> tuple[str, ...]:
        """Those for live subjects where all of the subjects are live, else those for objects."""
        return self.live if all(self.classes[subject] in LIVE for subject in subjects) else self.objects

    def prompts(self, *subjects: str) -> list[str]:
        """The prompts of one subject, or of several together: "a cat and a vase in the jungle", "a red cat and a red
        vase". Without DreamBooth's unique token."""
        return [self._filled(template, subjects) for template in self.templates(subjects)]

    def kind(self, prompt: str) -> str:
        """The kind of a prompt of any of the templates, see `prompt_kind`; that of others as far as words tell it."""
        for template in (*self.objects, *self.live):
            before = _said_before(template)
            if before and re.match(rf"an? {re.escape(before)} ", prompt):
                return "property"
        return prompt_kind(prompt)

    def _filled(self, template: str, subjects: Sequence[str]) -> str:
        words = [self.classes[subject] for subject in subjects]

        def name(found: re.Match[str]) -> str:
            before, article = found["before"], found["article"]
            return " and ".join(
                f"{article if before else 'an' if word[0] in 'aeiou' else 'a'} {before}{word}" for word in words
            )

        text = _NAMED.sub(name, template, count=1)
        return " ".join(text.replace("{0}", "").replace("{1}", " and ".join(words)).split())


def prompt_kind(template: str) -> str:
    """What a prompt asks for beside the subject itself: "place", "property", "accessory" or "style".

    Read off its words: a style is named as one, an accessory is worn or an outfit, a property stands before the
    subject's name, and all else is a place. On the benchmark's own lists that gives what its paper counts: 20 places
    ("recontextualisation") and 5 properties for objects; 10 places, 10 accessories and 5 properties for live subjects.
    """
    if _STYLE.search(template):
        return "style"
    if _ACCESSORY.search(template):
        return "accessory"
    return "property" if _said_before(template) else "place"


def _said_before(template: str) -> str:
    found = _NAMED.search(template)
    return found["before"].strip() if found else ""


def open_dreambench(folder: Path, reference: int = 0) -> FilePairs:
    """The benchmark in `folder`, each subject shown by its photo number `reference` in name order.

    A subject's key is SUBJECT/NN, NN the number of the prompt in its list. `masks/NAME.png` in a
    subject's folder is the mask of its photo. Raises DataError where the list cannot be read or
    subjects are missing.
    """
    path = folder / LIST
    listing = read_list(path)
    problems = []
    records = []
    for subject in listing.classes:
        photos = photos_of(folder / subject)
        if len(photos) <= reference:
            problems.append(
                f"{folder / subject}: {len(photos)} photos, but {LIST} names the subject and photo"
                f" {reference} is needed; restore its folder or remove its line"
            )
            continue
        shown = (photos[reference],)
        masks = (mask_beside(photos[reference]),)
        word = listing.classes[subject]
        for i, prompt in enumerate(listing.prompts(subject)):
            records.append(Record(str(path), f"{subject}/{i:02}", prompt, shown, masks, word))
    if problems:
        raise DataError(problems)
    return FilePairs(records, str(path))


def read_list(path: Path) -> Listing:
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
    return Listing(classes, tuple(objects), tuple(live))


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


def photos_of(folder: Path) -> list[Path]:
    """A subject's photos in name order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
