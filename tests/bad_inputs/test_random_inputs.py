"""Random inputs: bytes and texts as images, files and settings never end in a traceback."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from bad_cases import NO_MODEL, invoke, pairs, photo, scoring, training
from bad_images import encoded
from bad_weights import LORA, whole_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customized_grpo.config import Config
from customized_grpo.policies.adapters import lora_metadata
from customized_grpo.utils.hub import ModelError

few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LETTERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3),
    max_leaves=6,
)
KEYS = ["prompt", "references", "reference", "masks", "mask", "subject", "key"]
SECTIONS = [*Config.model_fields, *(f"{name}.{key}" for name in ("policy", "train", "rollout", "method", "data")
                                    for key in type(getattr(Config(), name)).model_fields)]  # fmt: skip
#: Files that are nearly right: the beginning of a known kind, then anything.
STARTS = st.sampled_from(
    [
        b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"P6 9 9 255\n",
        b"RIFF\x99\0\0\0WEBP", b"RIFF\x99\0\0\0WEBPVP8L",
    ]
)  # fmt: skip


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5
)


def damaged(whole: bytes, edits: list[tuple[float, bytes]]) -> bytes:
    """Replace some bytes; a place is a share of all bytes."""
    content = bytearray(whole)
    for place, new in edits:
        at = int(place * len(content))
        content[at : at + len(new)] = new
    return bytes(content)


def damaged_header(edits: list[tuple[float, bytes]]) -> bytes:
    """Damage the header of a whole LoRA."""
    whole = (whole_run() / "lora" / Path(LORA).name).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    return damaged(whole[:end], edits) + whole[end:]


IMAGES = st.tuples(STARTS, st.binary(max_size=300)).map(b"".join) | st.builds(
    damaged, st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]).map(encoded), EDITS
)
LORAS = (
    st.binary(max_size=100)
    | JSON.map(json.dumps).map(str.encode).map(lambda raw: struct.pack("<Q", len(raw)) + raw)
    | st.builds(damaged_header, EDITS)
)


def refused_or_used(*command: str) -> None:
    done = invoke([*command])
    assert done.code in (0, 2)
    assert all(line.startswith("error: ") and line.isprintable() for line in done.lines), done.lines
    assert bool(done.lines) == (done.code == 2)


@few
@given(IMAGES)
def test_bytes_as_an_image(folder: Path, content: bytes) -> None:
    (folder / "a.png").write_bytes(content)
    refused_or_used(*scoring("--prompt", "a", "--image", "a.png"))
    pairs(folder, {"prompt": "a", "reference": "a.png"})
    refused_or_used(*training("--data", "pairs.jsonl", *NO_MODEL))


@few
@given(st.binary(max_size=200) | LETTERS.map(str.encode))
def test_bytes_as_every_file_of_text(folder: Path, content: bytes) -> None:
    (folder / "bench").mkdir(exist_ok=True)
    for name in ("a.yaml", "a.jsonl", "a.json", "bench/prompts_and_classes.txt"):
        (folder / name).write_bytes(content)
    refused_or_used(*training("--config", "a.yaml", *NO_MODEL))
    refused_or_used("study", "a.yaml", "--report-only")
    for data in ("a.jsonl", "a.json", "bench"):
        refused_or_used(*training("--data", data, *NO_MODEL))


@few
@given(st.dictionaries(st.sampled_from(KEYS) | LETTERS, JSON, max_size=4))
def test_objects_as_a_line_and_as_a_record(folder: Path, record: dict[str, object]) -> None:
    photo(folder)
    pairs(folder, record, {"prompt": "a", "reference": "good.png"})
    refused_or_used(*training("--data", "pairs.jsonl", *NO_MODEL))
    (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    refused_or_used(*training("--data", "data.json", *NO_MODEL))


@few
@given(st.sampled_from(SECTIONS) | LETTERS, JSON | LETTERS)
def test_settings(folder: Path, key: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    refused_or_used(*training("--set", f"{key}={text}", *NO_MODEL))
    (folder / "a.yaml").write_text(
        f"{key.replace('.', ': {', 1)}: {text}{'}' if '.' in key else ''}\n", encoding="utf-8"
    )
    refused_or_used(*training("--config", "a.yaml", *NO_MODEL))


@few
@given(st.sampled_from(["generate", "evaluate", "export", "report", "score"]), st.lists(LETTERS, max_size=4))
def test_arguments(folder: Path, command: str, arguments: list[str]) -> None:
    refused_or_used(command, *arguments)


@few
@given(LORAS)
def test_bytes_as_a_lora(folder: Path, content: bytes) -> None:
    path = folder / "a.safetensors"
    path.write_bytes(content)
    refusal = ""
    try:
        lora_metadata(path)
    except ModelError as error:
        refusal = str(error)
    assert not refusal or (refusal.startswith(f"{path}: not a LoRA in safetensors") and "\n" not in refusal)
