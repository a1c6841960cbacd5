"""What DreamBench asks, alone and of two subjects: a small folder of its form, and the benchmark itself."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data import DataError
from customized_grpo.data.benchmark import default_combinations, open_benchmark, select
from customized_grpo.data.dreambench import LIST, Listing, prompt_kind, read_list

TEXT = """Classes

subject_name,class
rex,dog
tom,cat
brolly,umbrella
mug,cup

Object Prompts

'a {0} {1} in the jungle'.format(unique_token, class_token)
'a red {0} {1}'.format(unique_token, class_token)

Live Subject Prompts

'a {0} {1} wearing a red hat'.format(unique_token, class_token)
"""
REAL = Path(os.environ.get("DREAMBENCH", Path(__file__).parents[3] / "shared" / "dreambench"))
real = pytest.mark.skipif(not (REAL / LIST).is_file(), reason="DreamBench is not at hand; set DREAMBENCH to its folder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "bench"
    root.mkdir()
    (root / LIST).write_text(TEXT, encoding="utf-8")
    for k, subject in enumerate(("rex", "tom", "brolly", "mug")):
        (root / subject).mkdir()
        for i in range(2):
            Image.new("RGB", (8 + i, 8), (40 * k, 0, 0)).save(root / subject / f"{i:02}.png")
    return root


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("a {0} {1} on top of a purple rug in a forest", "place"),
        ("a photo of a {0} {1} with a red roof behind it", "place"),
        ("a cube shaped {0} {1}", "property"),
        ("a photo of a wet {0} {1}", "property"),
        ("a {0} {1} in a purple wizard outfit", "accessory"),
        ("a red {0} {1} wearing a hat", "accessory"),
        ("a painting of a {0} {1} in the style of Monet", "style"),
    ],
)
def test_kinds_of_prompts(template: str, kind: str) -> None:
    assert prompt_kind(template) == kind


def test_one_subject_is_shown_by_one_photo_and_held_against_all(folder: Path) -> None:
    benchmark = open_benchmark(str(folder))
    assert [(case.key, case.text, case.kind) for case in benchmark.cases] == [
        ("rex/00", "a dog wearing a red hat", "accessory"),
        ("tom/00", "a cat wearing a red hat", "accessory"),
        ("brolly/00", "an umbrella in the jungle", "place"),
        ("brolly/01", "a red umbrella", "property"),
        ("mug/00", "a cup in the jungle", "place"),
        ("mug/01", "a red cup", "property"),
    ]
    case = benchmark.cases[3]
    assert [photo.size for photo in benchmark.shown(case).references] == [(8, 8)]
    (view,) = benchmark.views(case)
    assert [photo.size for photo in view.references] == [(8, 8), (9, 8)]
    assert (view.prompt, view.subject, view.masks) == ("a red umbrella", "umbrella", (None, None))
    assert not benchmark.masked


def test_two_subjects_each_twice_and_never_two_of_a_class(folder: Path) -> None:
    found = default_combinations(folder)
    assert found == [("rex", "tom"), ("tom", "brolly"), ("brolly", "mug"), ("mug", "rex")]
    benchmark = open_benchmark(str(folder), two_subjects=True)
    texts = {case.key: case.text for case in benchmark.cases}
    assert texts["rex+tom/00"] == "a dog and a cat wearing a red hat", "both are live"
    assert texts["tom+brolly/00"] == "a cat and an umbrella in the jungle"
    assert texts["tom+brolly/01"] == "a red cat and a red umbrella"
    case = next(case for case in benchmark.cases if case.key == "tom+brolly/01")
    assert len(benchmark.shown(case).references) == 2
    assert [view.subject for view in benchmark.views(case)] == ["cat", "umbrella"]
    (folder / LIST).write_text(TEXT.replace("cup", "umbrella").replace("tom,cat", "tom,dog"), encoding="utf-8")
    with pytest.raises(DataError, match="no combinations of two classes"):
        default_combinations(folder)


def test_combinations_of_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "combinations.json"
    file.write_text(json.dumps([["rex", "mug"]]), encoding="utf-8")
    benchmark = open_benchmark(str(folder), combined=file)
    assert [case.text for case in benchmark.cases] == ["a dog and a cup in the jungle", "a red dog and a red cup"]


def test_cases_of_unos_file(folder: Path, tmp_path: Path) -> None:
    paths = ["./dreambooth/dataset/rex/01.png", "./dreambooth/dataset/mug/00.png"]
    asked = ["a dog and a cup in the jungle", "a red dog and a red cup"]
    file = tmp_path / "dreambench_multiip.json"
    file.write_text(json.dumps([{"prompt": text, "image_paths": paths} for text in asked]), encoding="utf-8")
    benchmark = open_benchmark(str(folder), combined=file)
    assert [(case.key, case.text, case.kind) for case in benchmark.cases] == [
        ("rex+mug/00", asked[0], "place"),
        ("rex+mug/01", asked[1], "property"),
    ]
    assert [photo.size for photo in benchmark.shown(benchmark.cases[0]).references] == [(9, 8), (8, 8)]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ("{}", "not a list"),
        ("[", "not valid JSON"),
        ('[["rex"]]', "entry 1: names no two subjects"),
        ('[["rex", "rex"]]', "entry 1: names no two subjects"),
        ('[["rex", "mug"], ["rex", "moon"]]', "entry 2: 'moon' is no subject"),
        ('[["rex", "mug"], ["mug", "rex"]]', "rex.mug is named twice"),
        ('[{"prompt": "x", "image_paths": ["rex/07.png", "mug/00.png"]}]', "07.png is not there"),
        ('[{"image_paths": ["rex/00.png", "mug/00.png"]}]', "entry 1: no prompt"),
        ('[["rex", "mug"], {"prompt": "x", "image_paths": ["rex/00.png", "mug/00.png"]}]', "keep one kind"),
    ],
)
def test_files_of_combinations_that_are_none(folder: Path, tmp_path: Path, entries: str, told: str) -> None:
    file = tmp_path / "file.json"
    file.write_text(entries, encoding="utf-8")
    with pytest.raises(DataError, match=told) as caught:
        open_benchmark(str(folder), combined=file)
    assert str(caught.value).startswith(str(file))


def test_the_digest_tells_photos_and_prompts_apart(folder: Path) -> None:
    first = open_benchmark(str(folder)).digest
    assert open_benchmark(str(folder)).digest == first
    Image.new("RGB", (8, 8), "blue").save(folder / "mug" / "01.png")
    second = open_benchmark(str(folder)).digest
    (folder / LIST).write_text(TEXT.replace("jungle", "snow"), encoding="utf-8")
    assert len({first, second, open_benchmark(str(folder)).digest}) == 3


def test_damaged_and_missing_photos_are_named(folder: Path) -> None:
    (folder / "mug" / "01.png").write_bytes(b"no picture")
    for photo in (folder / "rex").iterdir():
        photo.unlink()
    with pytest.raises(DataError) as caught:
        open_benchmark(str(folder))
    assert len(caught.value.problems) == 2
    assert "rex: no photos" in str(caught.value) and "01.png: not an image" in str(caught.value)


def test_any_other_data_is_taken_pair_by_pair(folder: Path, tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a cup in the snow", "references": ["bench/mug/00.png"]})
    (tmp_path / "pairs.jsonl").write_text(line + "\n" + line.replace("snow", "rain") + "\n", encoding="utf-8")
    benchmark = open_benchmark(str(tmp_path / "pairs.jsonl"))
    assert [(case.subject, case.text, case.kind) for case in benchmark.cases] == [
        ("00000", "a cup in the snow", None),
        ("00001", "a cup in the rain", None),
    ]
    world = open_benchmark("world")
    assert (len(world.cases), world.masked) == (96, True)
    with pytest.raises(DataError, match="DreamBench alone"):
        open_benchmark("world", two_subjects=True)


def test_a_part_of_it(folder: Path) -> None:
    benchmark = open_benchmark(str(folder))
    assert [case.key for case in select(benchmark, ["mug", "rex"], [0])] == ["rex/00", "mug/00"]
    assert select(benchmark, [], []) == benchmark.cases
    with pytest.raises(DataError, match="--subject 'moon'"):
        select(benchmark, ["moon"], [])
    with pytest.raises(DataError, match="--prompt 2: DreamBench has prompts 0 to 1"):
        select(benchmark, [], [2])


def test_words_of_a_finished_prompt_tell_its_kind() -> None:
    listing = Listing({"rex": "dog"}, ("a cube shaped {0} {1}", "a {0} {1} in the jungle"), ())
    assert listing.kind("a cube shaped dog and a cube shaped cup") == "property"
    assert listing.kind("a dog in the jungle") == "place"


@real
def test_the_benchmark_itself() -> None:
    listing = read_list(REAL / LIST)
    # As its paper counts: 20 + 5 for objects, 10 + 10 + 5 for live subjects, in this order; no style.
    assert [prompt_kind(text) for text in listing.objects] == ["place"] * 20 + ["property"] * 5
    assert [prompt_kind(text) for text in listing.live] == ["place"] * 10 + ["accessory"] * 10 + ["property"] * 5
    benchmark = open_benchmark(str(REAL))
    assert len(benchmark.cases) == 750
    assert Counter(case.kind for case in benchmark.cases) == {"place": 510, "property": 150, "accessory": 90}
    combinations = default_combinations(REAL)
    assert len({frozenset(pair) for pair in combinations}) == 30
    assert set(Counter(name for pair in combinations for name in pair).values()) == {2}
    assert all(listing.classes[one] != listing.classes[other] for one, other in combinations)
    assert len(open_benchmark(str(REAL), two_subjects=True).cases) == 750
