"""Data sets: JSON lines, SynCD's JSON, DreamBench folders; broken, hostile, or odd and yet right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bad_cases import NO_MODEL, Case, Command, Message, pairs, photo, training

from customized_grpo.config import DataConfig
from customized_grpo.data import open_dataset

GOOD = {"prompt": "a cat in the snow", "reference": "good.png"}
Line = object


def _opened(*lines: Line, file: str = "pairs.jsonl", more: tuple[str, ...] = ()) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        photo(folder)
        pairs(folder, *lines, name=file)
        return [training("--data", file, *more, *NO_MODEL)]

    return make


def json_lines() -> Iterator[Case]:
    def case(name: str, *lines: Line, message: tuple[Message, ...] | str, **options: Any) -> Case:
        """`message` as a text is one line of error about line 1."""
        expected = ((f"pairs.jsonl:1: {message}",),) if isinstance(message, str) else message
        return Case("JSON lines", name, _opened(*lines, **options), expected)

    utf8 = "not UTF-8 at byte "
    yield case("bad UTF-8", b'{"prompt": "\xe9t\xe9", "reference": "good.png"}', message=utf8)
    bad = "not valid JSON"
    for name, line in {
        "no JSON": "a cat in the snow",
        "cut": '{"prompt": "a cat", "refer',
        "zero bytes": "\0\0\0\0",
        "deeply nested": "[" * 100_000,
        "a number of 10,000 digits": "9" * 10_000,
    }.items():
        yield case(name, line, message=bad)
    for name, line in {"a list": "[1]", "not a number": "NaN"}.items():
        yield case(f"{name}, no object", line, message="not a JSON object")
    yield case(
        "a key twice", '{"prompt": "a", "prompt": "b", "reference": "good.png"}', message="not valid JSON (the key"
    )
    yield case("a misspelt key", {"promt": "a", **GOOD}, message="unknown key 'promt'; did you mean 'prompt'?")
    yield case("a misspelt key that may be left out", {**GOOD, "maks": "good.png"},
               message="unknown key 'maks'; did you mean 'masks'? If not, give the column another name")  # fmt: skip
    yield case("an empty key", {**GOOD, "": 1}, message="unknown key ''; a column needs a name of 1 to")
    yield case("no prompt", {"reference": "good.png"}, message="no 'prompt'; add it")
    yield case("no reference", {"prompt": "a cat"}, message="no 'references'; add it")
    yield case("an empty object", {}, message=(("pairs.jsonl:1: no 'prompt'",), ("pairs.jsonl:1: no 'references'",)))
    for key in ("prompt", "subject", "key"):
        yield case(f"{key} is a number", {**GOOD, key: 5}, message=f"'{key}' is ")
    for value in (5, "  ", ["good.png", 5], "a\0.png"):
        yield case(f"reference is {json.dumps(value)}", {**GOOD, "reference": value}, message="'reference' holds ")
    yield case("mask is a number", {**GOOD, "mask": 5}, message="'mask' holds ")
    yield case("no reference in the list", {"prompt": "a", "references": []}, message="'references' is an empty list")
    yield case(
        "reference and references", {**GOOD, "references": ["good.png"]}, message="'references' and 'reference' are"
    )
    yield case("masks too few", {"prompt": "a", "references": ["good.png"] * 2, "masks": ["good.png"]},
               message="'masks' has 1 for 2")  # fmt: skip
    for prompt in ("", "\u200b\u200e"):
        yield case(f"an empty prompt, {prompt!r}", {**GOOD, "prompt": prompt}, message="'prompt' is ")
    for path in ("a/../../good.png", "/etc/hostname"):
        message = f"'reference' is '{path}', which leaves the folder"
        yield case(f"the path {path}", {**GOOD, "reference": path}, message=message)
        yield case(f"a mask of the path {path}", {**GOOD, "mask": path}, message=message.replace("reference", "mask"))
    for path in ("missing.png", "$HOME/good.png", "file:///etc/hostname"):
        yield case(f"the path {path}", {**GOOD, "reference": path}, message=(("pairs.jsonl:1: ", "no such file"),))
    yield case("a path of 5,000 letters", {**GOOD, "reference": "a" * 5000}, message=(("pairs.jsonl:1: ", "aaaa"),))
    yield case("the file itself as image", {**GOOD, "reference": "pairs.jsonl"}, message=(("not an image",),))
    yield case("two of one key", {**GOOD, "key": "k"}, {**GOOD, "key": "k"},
               message=(("pairs.jsonl:2: the key 'k' is that of ",),))  # fmt: skip
    yield case("10 MB of letters, no JSON", "a" * 10**7, message=bad)
    many = [{"prompt": i, "reference": "good.png"} for i in range(250)]
    first = tuple((f"pairs.jsonl:{i + 1}: 'prompt' is {i}; ",) for i in range(20))
    yield case("250 problems, the first on a line each", *many, message=(*first, ("and 230 more of 250 problems",)))
    yield case(
        "problems of every kind at once", "{", "[1]", {**GOOD, "promt": 1}, {**GOOD, "prompt": ""}, GOOD,
        {**GOOD, "reference": "gone.png"}, {**GOOD, "mask": "gone.png"}, {**GOOD, "reference": "../good.png"},
        message=(("jsonl:1: not valid JSON",), ("jsonl:2: not a JSON object",), ("jsonl:3: unknown key",),
              ("jsonl:4: 'prompt' is ''",), ("jsonl:8: ", "leaves"), ("jsonl:6: ", "gone.png"), ("jsonl:7: ", "gone")),
    )  # fmt: skip
    empty = (("pairs.jsonl: holds no pairs",),)
    for name, line in {
        "no line": b"",
        "only a mark of byte order": b"\xef\xbb\xbf",
    }.items():
        yield case(name, line, message=empty)
    yield from _places()


def _places() -> Iterator[Case]:
    def case(name: str, path: str, message: str, make: Callable[[Path], object] = lambda folder: None) -> Case:
        def made(folder: Path) -> list[Command]:
            make(folder)
            return [training("--data", path, *NO_MODEL)]

        return Case("JSON lines", name, made, ((message,),))

    def at(name: str) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_text("x", encoding="utf-8")

    yield case("a file that is not there", "gone.jsonl", "data.path: no file or folder gone.jsonl")
    yield case("a name of no kind", "pairs.csv", "pairs.csv is of no known kind", at("pairs.csv"))
    yield case("no suffix", "pairs", "pairs is of no known kind", at("pairs"))
    yield case("an empty name", "", "data.path: ")
    yield case("a folder of that name", "pairs.jsonl", "has no prompts_and_classes.txt",
               lambda folder: (folder / "pairs.jsonl").mkdir())  # fmt: skip
    yield case("an address", "https://example.org/pairs.jsonl", "no file or folder https:")
    yield case("a name of 5,000 letters", "a" * 5000 + ".jsonl", "data.path: ")
    yield Case("JSON lines", "a root that is not there", _opened(GOOD, more=("--set", "data.root=gone")),
               (("data.root: no folder gone",),))  # fmt: skip
    yield Case("JSON lines", "a root that is a file", _opened(GOOD, more=("--set", "data.root=good.png")),
               (("data.root: no folder good.png",),))  # fmt: skip


def used() -> Iterator[Case]:
    def case(name: str, *lines: Line, prompts: list[str], **options: Any) -> Case:
        def check(folder: Path, printed: str) -> None:
            dataset = open_dataset(DataConfig(path=str(folder / options.get("file", "pairs.jsonl"))))
            found = [dataset[i] for i in range(len(dataset))]
            assert [pair.prompt for pair in found] == prompts
            assert all(pair.references[0].size == (24, 18) for pair in found)

        return Case("JSON lines", name, _opened(*lines, **options), (), check)

    text, one = json.dumps(GOOD), [GOOD["prompt"]]
    yield case("a mark of byte order", b"\xef\xbb\xbf" + text.encode(), prompts=one)
    yield case("lines of Windows", f"{text}\r\n{text}\r", prompts=one * 2)
    yield case("blank lines between", text, "", "   ", text, prompts=one * 2)
    yield case("Unicode's own line breaks in a prompt", {**GOOD, "prompt": "a\u2028b\x85c"}, prompts=["a\u2028b\x85c"])
    yield case("a prompt of 5 MB", {**GOOD, "prompt": "cat " * 1_250_000}, prompts=[("cat " * 1_250_000).strip()])
    yield case("control characters in a prompt", {**GOOD, "prompt": "a\0\x07\x1b[2Jcat"}, prompts=["a\0\x07\x1b[2Jcat"])
    yield case("no mask by null", {**GOOD, "masks": [None], "subject": None}, prompts=one)
    yield case("a way round through the folder", {**GOOD, "reference": "./a/../good.png"}, prompts=one)
    yield case("the suffix .ndjson", GOOD, prompts=one, file="pairs.ndjson")


def syncd() -> Iterator[Case]:
    def case(name: str, content: object, *message: str) -> Case:
        raw = content if isinstance(content, bytes | str) else json.dumps(content)
        return Case("SynCD JSON", name, _opened(raw, file="data.json"), tuple((line,) for line in message))

    first = "data.json[0]: "
    yield case("no JSON", "nonsense", "data.json: not valid JSON")
    yield case("bad UTF-8", b'["\xff"]', "not UTF-8 at byte 2")
    yield case("an empty list", [], "data.json: holds no pairs")
    yield case("a number", 5, "data.json: neither a list of records nor")
    yield case("a list of numbers", [1, 2], "data.json[0]: not a JSON object", "data.json[1]: not a JSON object")
    yield case("no prompt", [{"reference": "good.png"}], first + "no 'prompt'; add it")
    yield case("a image that is gone", [{**GOOD, "reference": "gone.png"}], first)
    yield case(
        "a path that leaves", [{**GOOD, "reference": "../a.png"}], first + "'reference' is '../a.png', which leaves"
    )
    yield case("filenames of a text", [{"filenames": 5, "prompts": ["a"]}], first + "'filenames' holds 5")
    yield case("one image alone", [{"filenames": ["good.png"], "prompts": ["a"]}], first + "1 prompts for 1")
    yield case("prompts too few", [{"filenames": ["good.png"] * 2, "prompts": ["a"]}], first + "1 prompts for 2")
    yield Case("SynCD JSON", "an object around the list", _opened({"pairs": [GOOD]}, file="data.json"))


PROMPT = "'a {0} {1} in the jungle'.format(unique_token, class_token)"
LISTED = (
    "Classes\n\nsubject_name,class\ndog,dog\n\nPrompts\n\nObject Prompts\n\nprompt_list = [\n"
    f"{PROMPT}\n]\n\nLive Subject Prompts\n\nprompt_list = [\n{PROMPT}\n]\n"
)


def dreambench() -> Iterator[Case]:
    def case(name: str, content: bytes | str | None, *message: str) -> Case:
        def make(folder: Path) -> list[Command]:
            (folder / "bench" / "dog").mkdir(parents=True)
            photo(folder / "bench" / "dog", "00.png")
            if content is not None:
                raw = content if isinstance(content, bytes) else content.encode()
                (folder / "bench" / "prompts_and_classes.txt").write_bytes(raw)
            return [training("--data", "bench", *NO_MODEL)]

        return Case("DreamBench", name, make, tuple((line,) for line in message))

    where = "bench/prompts_and_classes.txt"
    yield case("no list", None, "bench has no prompts_and_classes.txt")
    yield case("an empty list", "", f"{where}: lacks the classes")
    yield case("bad UTF-8", b"Classes\n\xff\n", f"{where}: not UTF-8 at byte 8")
    yield case("a line that is no prompt", LISTED.replace(PROMPT, f"{PROMPT}\nexec('evil')"),
               f"{where}:12: \"exec('evil')\" is no prompt", f"{where}:19: \"exec('evil')\" is no prompt")  # fmt: skip
    yield case(
        "a line that is no subject", LISTED.replace("dog,dog", "dog,dog\ncat"), f"{where}:5: 'cat' is no subject"
    )
    yield case(
        "a subject twice", LISTED.replace("dog,dog", "dog,dog\ndog,cat"), f"{where}:5: the subject 'dog' is given"
    )
    for name in ("../dog", "/etc"):
        yield case(f"the subject {name}", LISTED.replace("dog,dog", f"dog,dog\n{name},cat"), f"{where}:5: '{name}' is")
    yield case("a subject without a folder", LISTED.replace("dog,dog", "dog,dog\ncat,cat"), "bench/cat: no photos")
    yield case("lines of Windows", LISTED.replace("\n", "\r\n"))
    yield case("a mark of byte order", "\ufeff" + LISTED)


CASES = [*json_lines(), *used(), *syncd(), *dreambench()]
