"""DreamBench, the benchmark of DreamBooth (arXiv 2208.12242): 30 subjects by 25 prompts.

The folder contains one folder of photos for each subject and the benchmark's own file `prompts_and_classes.txt`: a
table of subjects and class words, and two lists of 25 prompts, for objects and for live subjects.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.data.errors import DataError
from customized_grpo.data.records import FilePairs, Record, mask_beside, read_bytes

LIST = "prompts_and_classes.txt"
#: Classes with the live prompts: the paper counts 9 live subjects, its cats and dogs. Plush animals are objects.
LIVE = frozenset({"cat", "dog"})
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_TEMPLATE = re.compile(r"""(['"])(?P<text>.*)\1\s*\.format\(\s*unique_token\s*,\s*class_token\s*\)\s*,?""")
#: The subject in a template: its article, the words before its name, and the name.
_NAMED = re.compile(r"\b(?P<article>an?) (?P<before>(?:(?!\ban? )[^{}])*)\{0\} \{1\}")
_STYLE = re.compile(r"\b(style|painting|drawing|sketch|sculpture)\b")
_ACCESSORY = re.compile(r"\b(wearing|outfit)\b")
#: Kinds of prompts, in the order of reports. DreamBench's own lists have no style.
PROMPT_KINDS = ("place", "property", "accessory", "style")


@dataclass(frozen=True)
class Listing:
    """Content of the list: class words by subject, and templates with {1} for the class word."""

    classes: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def templates(self, subjects: Sequence[str]) -> tuple[str, ...]:
        """Return the live templates if all subjects are live, else those for objects."""
        return self.live if all(self.classes[subject] in LIVE for subject in subjects) else self.objects

    def prompts(self, *subjects: str) -> list[str]:
        """Return the prompts of one or several subjects: "a red cat and a red vase". There is no unique token."""
        words = [self.classes[subject] for subject in subjects]

        def name(found: re.Match[str]) -> str:
            before, article = found["before"], found["article"]
            return " and ".join(
                f"{article if before else 'an' if word[0] in 'aeiou' else 'a'} {before}{word}" for word in words
            )

        texts = [_NAMED.sub(name, template, count=1) for template in self.templates(subjects)]
        return [" ".join(text.replace("{0}", "").replace("{1}", " and ".join(words)).split()) for text in texts]

    def kind(self, prompt: str) -> str:
        """Return the kind of a finished prompt (see `prompt_kind`), by the templates' properties and by its words."""
        properties = filter(None, map(_without_property, (*self.objects, *self.live)))
        if any(re.match(rf"an? {re.escape(words)} ", prompt) for words in properties):
            return "property"
        return prompt_kind(prompt)


def prompt_kind(template: str) -> str:
    """Classify a prompt template by its words as "place", "property", "accessory" or "style"; see docs/evaluate.md."""
    if _STYLE.search(template):
        return "style"
    if _ACCESSORY.search(template):
        return "accessory"
    return "property" if _without_property(template) else "place"


def _without_property(template: str) -> str:
    found = _NAMED.search(template)
    return found["before"].strip() if found else ""


def dreambench_folder(path: Path, where: str = "") -> Path:
    """Return `path` or its folder `dataset`, whichever has the list. Raises DataError that begins with `where`."""
    for folder in (path, path / "dataset"):  # the benchmark's repository has it one folder down
        if (folder / LIST).is_file():
            return folder
    remedy = "give a DreamBench folder, images with metadata.jsonl or .txt captions, or a .jsonl file"
    raise DataError([f"{where}{path} has no {LIST}; {remedy}"])


def open_dreambench(folder: Path) -> FilePairs:
    """Open the benchmark with the first photo of each subject as its reference; keys are SUBJECT/NN, NN the prompt.

    Raises DataError if the list cannot be read or a subject has no photos.
    """
    listing = read_list(folder / LIST)
    return FilePairs(
        [
            Record(str(folder / LIST), f"{subject}/{i:02}", prompt, found[:1], (mask_beside(found[0]),), word)
            for (subject, word), found in zip(
                listing.classes.items(), read_photos(folder, listing).values(), strict=True
            )
            for i, prompt in enumerate(listing.prompts(subject))
        ],
        str(folder / LIST),
    )


def read_photos(folder: Path, listing: Listing) -> dict[str, tuple[Path, ...]]:
    """Return the photos of each listed subject in name order. Raises DataError if a subject has none."""
    found: dict[str, tuple[Path, ...]] = {}
    for subject in listing.classes:
        inside = (folder / subject).iterdir() if (folder / subject).is_dir() else ()
        found[subject] = tuple(sorted(path for path in inside if path.suffix.lower() in SUFFIXES))
    if missing := [subject for subject, photos in found.items() if not photos]:
        remedy = "restore its folder or remove its line"
        raise DataError(f"{folder / name}: no photos, but {LIST} names the subject; {remedy}" for name in missing)
    return found


def read_list(path: Path) -> Listing:
    """Parse `prompts_and_classes.txt`. Raises DataError with FILE:LINE for each problem."""
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8"]) from error
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object prompts": [], "live subject prompts": []}
    problems: list[str] = []
    section = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        problem = None
        if line.lower() in ("classes", "prompts", *prompts):
            section = line.lower()
        elif section == "classes" and line and line != "subject_name,class":
            problem = _add_subject(line, classes)
        elif section in prompts and line and line not in ("prompt_list = [", "]"):
            match = _TEMPLATE.fullmatch(line)
            if match is None or "{1}" not in match["text"]:
                problem = f"{line!r} is no prompt; write 'a {{0}} {{1}} ...'.format(unique_token, class_token)"
            else:
                prompts[section].append(match["text"])
        problems += [f"{path}:{number}: {problem}"] if problem else []
    objects, live = prompts.values()
    if not problems and not (classes and objects and live):
        problems = [f"{path}: lacks the classes or one of the two lists of prompts; restore the benchmark's own file"]
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
