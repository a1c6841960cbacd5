"""DreamBench: a small folder of the same form, and the benchmark itself where it is at hand."""

import os
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.config import DataConfig
from customized_grpo.data import DataError, open_dataset
from customized_grpo.data.dreambench import LIST, open_dreambench, read_list

TEXT = """Classes

subject_name,class
rex,dog
plush,stuffed animal
brolly,umbrella

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / LIST).write_text(TEXT)
    for subject in ("rex", "plush", "brolly", "stray"):
        (tmp_path / subject).mkdir()
        for i in (1, 0):
            Image.new("RGB", (8 + i, 8)).save(tmp_path / subject / f"{i:02}.jpg")
    (tmp_path / "rex" / "masks").mkdir()
    Image.new("L", (8, 8), 255).save(tmp_path / "rex" / "masks" / "00.png")
    return tmp_path


def test_a_folder_of_its_form(folder: Path) -> None:
    dataset = open_dataset(DataConfig(path=str(folder)))
    pairs = [dataset[i] for i in range(len(dataset))]
    assert [(pair.key, pair.subject, pair.prompt) for pair in pairs] == [
        ("rex/00", "dog", "a dog wearing a red hat"),
        ("plush/00", "stuffed animal", "a stuffed animal in the jungle"),
        ("plush/01", "stuffed animal", "a stuffed animal on a king's rug"),
        ("plush/02", "stuffed animal", "a red stuffed animal"),
        ("brolly/00", "umbrella", "an umbrella in the jungle"),
        ("brolly/01", "umbrella", "an umbrella on a king's rug"),
        ("brolly/02", "umbrella", "a red umbrella"),
    ]
    assert all(pair.references[0].width == 8 for pair in pairs)
    assert [pair.masks[0] is not None for pair in pairs] == [True] + [False] * 6
    assert open_dreambench(folder, reference=1)[0].references[0].width == 9


def test_the_repository_has_it_one_folder_down(folder: Path) -> None:
    inner = folder.rename(folder.parent / (folder.name + "-repository"))
    outer = folder.parent / "outer"
    outer.mkdir()
    inner.rename(outer / "dataset")
    assert len(open_dataset(DataConfig(path=str(outer)))) == 7


def test_missing_subjects_are_named(folder: Path) -> None:
    for path in [*(folder / "plush").iterdir()]:
        path.unlink()
    (folder / "brolly").rename(folder / "umbrella")
    with pytest.raises(DataError) as caught:
        open_dreambench(folder)
    first, second = caught.value.problems
    assert first.startswith(f"{folder / 'plush'}: 0 photos")
    assert second.startswith(f"{folder / 'brolly'}: 0 photos")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("rex,dog", "rex dog", ":4: 'rex dog' is no subject"),
        ("rex,dog", "../rex,dog", ":4: '../rex' is not the name of a folder"),
        ("plush,", "rex,", ":5: the subject 'rex' is given twice"),
        ("'a {0} {1} in the", "'a {0} in the", ":13: "),
        ("'a {0} {1} in the", "b {0} {1} in the", ":13: "),
        ("Live Subject Prompts", "", "lacks the classes or one of the two"),
    ],
)
def test_a_damaged_list(folder: Path, old: str, new: str, text: str) -> None:
    (folder / LIST).write_text(TEXT.replace(old, new))
    with pytest.raises(DataError) as caught:
        read_list(folder / LIST)
    assert str(caught.value).startswith(str(folder / LIST))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_templates_are_filled_not_evaluated(folder: Path) -> None:
    (folder / LIST).write_text(TEXT.replace("in the jungle", "in {0.__class__} {1!r:>9}"))
    prompt = read_list(folder / LIST).prompts("plush")[0]
    assert prompt == "a stuffed animal in {0.__class__} {1!r:>9}"


@pytest.mark.skipif(not (REAL / LIST).is_file(), reason="DreamBench is not at hand; set DREAMBENCH to its folder")
def test_the_benchmark_itself() -> None:
    dataset = open_dataset(DataConfig(path=str(REAL)))
    assert len(dataset) == 30 * 25
    pairs = {pair.key: pair for pair in (dataset[i] for i in (0, 160, 735))}
    assert pairs["backpack/00"].prompt == "a backpack in the jungle"
    assert pairs["cat/10"].prompt == "a cat wearing a red hat"
    assert pairs["wolf_plushie/10"].prompt == "a stuffed animal with a wheat field in the background"
    assert min(pairs["cat/10"].references[0].size) >= 256
    benchmark = read_list(REAL / LIST)
    assert sum(word in ("cat", "dog") for word in benchmark.classes.values()) == 9
    for subject in benchmark.classes:
        prompts = benchmark.prompts(subject)
        assert len(set(prompts)) == 25
        assert not any("{" in prompt or "  " in prompt for prompt in prompts)
