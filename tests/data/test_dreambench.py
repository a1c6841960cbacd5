"""DreamBench: a small folder of the same form, and the benchmark itself if it is at hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, open_dataset
from customized_grpo.data.benchmark import default_combinations, open_benchmark, select
from customized_grpo.data.dreambench import LIST, Listing, prompt_kind, read_list

TEXT = """Classes

subject_name,class
rex,dog
tom,cat
brolly,umbrella
plush,stuffed animal

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"a {0} {1} on a king's rug".format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""
REAL = Path(os.environ.get("DREAMBENCH", Path(__file__).parents[3] / "shared" / "dreambench"))
real = pytest.mark.skipif(not (REAL / LIST).is_file(), reason="DreamBench is not at hand; set DREAMBENCH to its folder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "bench"
    root.mkdir()
    (root / LIST).write_text(TEXT, encoding="utf-8")
    for k, subject in enumerate(("rex", "tom", "brolly", "plush", "stray")):
        (root / subject).mkdir()
        for i in (1, 0):
            Image.new("RGB", (8 + i, 8), (40 * k, 0, 0)).save(root / subject / f"{i:02}.png")
    (root / "rex" / "masks").mkdir()
    Image.new("L", (8, 8), 255).save(root / "rex" / "masks" / "00.png")
    return root


def test_a_folder_of_its_form(folder: Path) -> None:
    dataset = open_dataset(DataConfig(path=str(folder)))
    pairs = [dataset[i] for i in range(len(dataset))]
    assert [(pair.key, pair.subject, pair.prompt) for pair in pairs] == [
        ("rex/00", "dog", "a dog wearing a red hat"),
        ("tom/00", "cat", "a cat wearing a red hat"),
        ("brolly/00", "umbrella", "an umbrella in the jungle"),
        ("brolly/01", "umbrella", "an umbrella on a king's rug"),
        ("brolly/02", "umbrella", "a red umbrella"),
        ("plush/00", "stuffed animal", "a stuffed animal in the jungle"),
        ("plush/01", "stuffed animal", "a stuffed animal on a king's rug"),
        ("plush/02", "stuffed animal", "a red stuffed animal"),
    ]
    assert all(pair.references[0].width == 8 for pair in pairs), "the first photo in name order"
    assert [pair.masks[0] is not None for pair in pairs] == [True] + [False] * 7
    (folder.parent / "repository").mkdir()
    folder.rename(folder.parent / "repository" / "dataset")
    assert len(open_dataset(DataConfig(path=str(folder.parent / "repository")))) == 8


def test_templates_are_filled_not_evaluated(folder: Path) -> None:
    (folder / LIST).write_text(TEXT.replace("in the jungle", "in {0.__class__} {1!r:>9}"))
    assert read_list(folder / LIST).prompts("plush")[0] == "a stuffed animal in {0.__class__} {1!r:>9}"


def test_kinds_of_prompts() -> None:
    kinds = {
        "a {0} {1} on top of a purple rug in a forest": "place",
        "a photo of a {0} {1} with a red roof behind it": "place",
        "a cube shaped {0} {1}": "property",
        "a photo of a wet {0} {1}": "property",
        "a {0} {1} in a purple wizard outfit": "accessory",
        "a red {0} {1} wearing a hat": "accessory",
        "a painting of a {0} {1} in the style of Monet": "style",
    }
    assert {template: prompt_kind(template) for template in kinds} == kinds
    listing = Listing({"rex": "dog"}, ("a cube shaped {0} {1}", "a {0} {1} in the jungle"), ())
    assert listing.kind("a cube shaped dog and a cube shaped cup") == "property"
    assert listing.kind("a dog in the jungle") == "place"


def test_a_benchmark_shows_one_photo_and_compares_with_all(folder: Path) -> None:
    benchmark = open_benchmark(str(folder))
    assert (len(benchmark.cases), benchmark.units, benchmark.masked) == (8, "subjects", False)
    case = benchmark.cases[4]
    assert (case.key, case.text, case.kind) == ("brolly/02", "a red umbrella", "property")
    assert [photo.size for photo in benchmark.shown(case).references] == [(8, 8)]
    (view,) = benchmark.views(case)
    assert [photo.size for photo in view.references] == [(8, 8), (9, 8)]
    assert (view.prompt, view.subject, view.masks) == ("a red umbrella", "umbrella", (None, None))
    (view,) = benchmark.views(benchmark.cases[0])
    assert [mask is not None for mask in view.masks] == [True, False]
    assert [case.key for case in select(benchmark, ["plush", "rex"], [0])] == ["rex/00", "plush/00"]
    assert select(benchmark, [], []) == benchmark.cases
    with pytest.raises(DataError, match="--subject 'moon'"):
        select(benchmark, ["moon"], [])
    with pytest.raises(DataError, match="--prompt 3: DreamBench has prompts 0 to 2"):
        select(benchmark, [], [3])


def test_two_subjects_each_twice_and_never_two_of_a_class(folder: Path) -> None:
    found = default_combinations(folder)
    assert found == [("rex", "tom"), ("tom", "brolly"), ("brolly", "plush"), ("plush", "rex")]
    benchmark = open_benchmark(str(folder), two_subjects=True)
    texts = {case.key: case.text for case in benchmark.cases}
    assert texts["rex+tom/00"] == "a dog and a cat wearing a red hat", "both are live"
    assert texts["tom+brolly/00"] == "a cat and an umbrella in the jungle"
    assert texts["tom+brolly/02"] == "a red cat and a red umbrella"
    case = next(case for case in benchmark.cases if case.key == "tom+brolly/02")
    assert len(benchmark.shown(case).references) == 2
    assert [view.subject for view in benchmark.views(case)] == ["cat", "umbrella"]
    (folder / LIST).write_text(TEXT.replace("stuffed animal", "umbrella").replace("tom,cat", "tom,dog"), "utf-8")
    with pytest.raises(DataError, match="no combinations of two classes"):
        default_combinations(folder)


def test_combinations_of_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "combinations.json"
    paths = ["./dreambooth/dataset/rex/01.png", "./dreambooth/dataset/plush/00.png"]
    record = {"prompt": "a red dog and a red stuffed animal", "image_paths": paths}  # as in UNO's file
    file.write_text(json.dumps([["rex", "brolly"], record]), encoding="utf-8")
    benchmark = open_benchmark(str(folder), combined=file)
    assert [(case.key, case.text, case.kind) for case in benchmark.cases] == [
        ("rex+brolly/00", "a dog and an umbrella in the jungle", "place"),
        ("rex+brolly/01", "a dog and an umbrella on a king's rug", "place"),
        ("rex+brolly/02", "a red dog and a red umbrella", "property"),
        ("rex+plush/00", "a red dog and a red stuffed animal", "property"),
    ]
    assert [photo.size for photo in benchmark.shown(benchmark.cases[-1]).references] == [(9, 8), (8, 8)]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ("[", "not valid JSON"),
        ("[5]", "entry 1: 5 is of no known form"),
        ('[["rex", "rex"]]', "entry 1: .* are not two subjects"),
        ('[{"prompt": "x", "image_paths": ["rex/07.png", "plush/00.png"]}]', "no such file .*07.png"),
    ],
)
def test_files_of_combinations_that_are_none(folder: Path, tmp_path: Path, entries: str, text: str) -> None:
    file = tmp_path / "file.json"
    file.write_text(entries, encoding="utf-8")
    with pytest.raises(DataError, match=text) as caught:
        open_benchmark(str(folder), combined=file)
    assert str(caught.value).startswith(str(file))


def test_the_digest_depends_on_photos_and_prompts(folder: Path) -> None:
    first = open_benchmark(str(folder)).digest
    assert open_benchmark(str(folder)).digest == first
    Image.new("RGB", (8, 8), "blue").save(folder / "plush" / "01.png")
    second = open_benchmark(str(folder)).digest
    (folder / LIST).write_text(TEXT.replace("jungle", "snow"), encoding="utf-8")
    assert len({first, second, open_benchmark(str(folder)).digest}) == 3


def test_any_other_data_is_taken_pair_by_pair(folder: Path, tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a cup in the snow", "references": ["bench/plush/00.png"]})
    (tmp_path / "pairs.jsonl").write_text(line + "\n" + line.replace("snow", "rain") + "\n", encoding="utf-8")
    benchmark = open_benchmark(str(tmp_path / "pairs.jsonl"))
    assert [(case.subject, case.text, case.kind) for case in benchmark.cases] == [
        ("00000", "a cup in the snow", None),
        ("00001", "a cup in the rain", None),
    ]
    world = open_benchmark("world")
    assert (len(world.cases), world.masked) == (96, True)


@real
def test_the_benchmark_itself() -> None:
    dataset, listing = open_dataset(DataConfig(path=str(REAL))), read_list(REAL / LIST)
    assert len(dataset) == 30 * 25
    prompts = {pair.key: pair.prompt for pair in (dataset[i] for i in (0, 160, 735))}
    assert prompts == {
        "backpack/00": "a backpack in the jungle",
        "cat/10": "a cat wearing a red hat",
        "wolf_plushie/10": "a stuffed animal with a wheat field in the background",
    }
    # As its paper counts: 20 + 5 for objects, 10 + 10 + 5 for live subjects, in this order; no style.
    assert [prompt_kind(text) for text in listing.objects] == ["place"] * 20 + ["property"] * 5
    assert [prompt_kind(text) for text in listing.live] == ["place"] * 10 + ["accessory"] * 10 + ["property"] * 5
    combinations = default_combinations(REAL)
    assert len({frozenset(pair) for pair in combinations}) == 30
    assert set(Counter(name for pair in combinations for name in pair).values()) == {2}
    assert all(listing.classes[one] != listing.classes[other] for one, other in combinations)
    benchmark = open_benchmark(str(REAL), two_subjects=True)
    assert len(benchmark.cases) == 750
    assert Counter(case.kind for case in open_benchmark(str(REAL)).cases) == {
        "place": 510, "property": 150, "accessory": 90,
    }  # fmt: skip
