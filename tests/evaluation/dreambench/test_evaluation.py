"""An evaluation from end to end: what it leaves, what it comes to, and that nothing but its settings decides it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from customized_grpo.config import ConfigError, RewardConfig
from customized_grpo.data import DataError
from customized_grpo.data.pictures import load
from customized_grpo.evaluation.dreambench import evaluate_on, evaluation, open_task
from customized_grpo.evaluation.dreambench.evaluation import Evaluated, Task, evaluate_system
from customized_grpo.evaluation.dreambench.folder import EvaluationFolder, PictureFolder
from customized_grpo.evaluation.dreambench.systems import find_system
from customized_grpo.protocols import Pair
from customized_grpo.rewards import build_reward
from customized_grpo.utils.noise import normal
from customized_grpo.utils.pixels import to_tensor
from customized_grpo.utils.records import read_records

CASES = [f"{subject}/0{prompt}" for subject in ("rex", "plush", "brolly") for prompt in range(3)]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def open_it(dreambench: Path, protocol: Path) -> Callable[..., Task]:
    def make(**options: object) -> Task:
        return open_task(str(dreambench), protocol=str(protocol), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dreambench: Path, protocol: Path, recipe: Path) -> Evaluated:
    """The base model on all of the small benchmark. Not to be changed."""
    task = open_task(str(dreambench), protocol=str(protocol))
    found = evaluate_system(find_system(str(recipe)), task, tmp_path_factory.mktemp("whole") / "base", quiet())
    assert found is not None
    return found


def folder_of(found: Evaluated) -> Path:
    return found.pictures.root.parent


def bytes_of(folder: Path) -> dict[str, bytes]:
    root = folder / "pictures"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def scores_of(folder: Path) -> dict[str, dict[str, list[float]]]:
    records = [record for path in (folder / "scores").glob("*.jsonl") for record in read_records(path)]
    return {record["case"]: record["scores"] for record in records}


def test_what_it_leaves(whole: Evaluated) -> None:
    folder = folder_of(whole)
    names = [f"{case}_{index}.png" for case in CASES for index in range(2)]
    assert sorted(bytes_of(folder)) == sorted(names)
    assert len({*bytes_of(folder).values()}) == len(names), "each from noise of its own"
    assert sorted(scores_of(folder)) == sorted(CASES)
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert all(f"| {row} |" in text for row in ("overall", "place", "property", "accessory", "rex", "brolly"))
    assert "| style |" not in text


def test_noise_belongs_to_seed_subject_prompt_and_index(whole: Evaluated, recipe: Path, dreambench: Path) -> None:
    policy = find_system(str(recipe)).open()
    conditions = policy.encode("a stuffed animal on the beach", [load(dreambench / "plush" / "00.png")])
    noise = normal((1, *policy.latent_shape), 0, "benchmark", "plush/01", 1)
    (picture,) = evaluation.sample_pictures(policy, conditions, noise, policy.sigmas(2))
    kept = load(folder_of(whole) / "pictures" / "plush/01_1.png")
    assert torch.equal((picture * 255).round(), (to_tensor(kept) * 255).round())


def test_scores_are_the_judges_own_against_all_photos(whole: Evaluated, dreambench: Path, dino: Path) -> None:
    folder = folder_of(whole)
    options = {"segmented": False}
    judge = build_reward(RewardConfig(kind="dino", role="identity", path=str(dino), options=options), "cpu")

    def similarity(picture: Path, other: Path) -> float:
        pair = Pair(str(other), "", (load(other),), (None,))
        return float(judge(to_tensor(load(picture))[None], [pair]))

    drawn = [folder / "pictures" / f"plush/01_{index}.png" for index in range(2)]
    photos = sorted((dreambench / "plush").iterdir())
    scores = scores_of(folder)["plush/01"]
    for picture, score in zip(drawn, scores["DINO-I"], strict=True):
        assert score == pytest.approx(sum(similarity(picture, photo) for photo in photos) / 3, abs=1e-3)
    assert scores["diversity (DINO-I)"] == pytest.approx([100 - similarity(*drawn)] * 2, abs=1e-3)
    reds = [100 * float(to_tensor(load(picture))[0].mean()) for picture in drawn]
    assert scores["redness"] == pytest.approx(reds, abs=1e-3)


def test_means_over_subjects_by_kind_and_overall(whole: Evaluated) -> None:
    told = json.loads((folder_of(whole) / "summary.json").read_text(encoding="utf-8"))
    scores = scores_of(folder_of(whole))

    def mean(*cases: str) -> float:
        values = [value for case in cases for value in scores[case]["DINO-I"]]
        return sum(values) / len(values)

    by_subject = [mean(*(f"{subject}/0{i}" for i in range(3))) for subject in ("rex", "plush", "brolly")]
    assert told["overall"]["DINO-I"]["mean"] == pytest.approx(sum(by_subject) / 3)
    assert told["overall"]["DINO-I"]["low"] == pytest.approx(min(by_subject))
    assert told["overall"]["DINO-I"]["high"] == pytest.approx(max(by_subject))
    assert told["by subject"]["plush"]["DINO-I"] == pytest.approx(by_subject[1])
    places = [mean("rex/00"), mean("plush/00", "plush/01"), mean("brolly/00", "brolly/01")]
    assert told["place"]["DINO-I"]["mean"] == pytest.approx(sum(places) / 3), "a subject counts once, whatever it has"
    assert told["accessory"]["DINO-I"]["mean"] == pytest.approx(mean("rex/01"))
    assert (told["subjects"], told["cases"], told["pictures"], told["missing"]) == (3, 9, 18, {})


def test_a_part_and_several_processes_draw_the_same(
    whole: Evaluated, recipe: Path, tmp_path: Path, open_it: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = find_system(str(recipe))
    part = evaluate_system(system, open_it(subjects=["plush"], prompts=[1], images=3), tmp_path / "part", quiet())
    assert part is not None
    expected, drawn = bytes_of(folder_of(whole)), bytes_of(tmp_path / "part")
    assert len(drawn) == 3
    assert all(drawn[name] == expected[name] for name in ("plush/01_0.png", "plush/01_1.png"))
    ended = []
    for process in range(2):
        monkeypatch.setenv("RANK", str(process))
        monkeypatch.setenv("WORLD_SIZE", "2")
        ended.append(evaluate_system(system, open_it(), tmp_path / "shared", quiet()))
    assert ended[0] is None and ended[1] is not None, "the last one sums up"
    assert len(read_records(tmp_path / "shared" / "scores" / "1.jsonl")) == 4
    assert bytes_of(tmp_path / "shared") == expected
    assert scores_of(tmp_path / "shared") == scores_of(folder_of(whole))


def test_it_goes_on_picture_by_picture(
    whole: Evaluated, recipe: Path, tmp_path: Path, open_it: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, system, sample = tmp_path / "out", find_system(str(recipe)), evaluation.sample_pictures
    drawn = 0

    def counted(*arguments: object) -> torch.Tensor:
        nonlocal drawn
        if drawn == 5:
            raise KeyboardInterrupt
        drawn += 1
        return sample(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "sample_pictures", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_system(system, open_it(), out, quiet())
    assert len(bytes_of(out)) == 5
    drawn = -8
    assert evaluate_system(system, open_it(), out, quiet()) is not None
    assert drawn == 5, "the other 13, and no more"
    assert bytes_of(out) == bytes_of(folder_of(whole))
    assert scores_of(out) == scores_of(folder_of(whole))


def test_damaged_missing_and_exchanged_pictures_are_drawn_again(
    whole: Evaluated, recipe: Path, tmp_path: Path, open_it: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(whole), out)
    pictures = out / "pictures"
    (pictures / "rex/00_1.png").unlink()
    whole_png = (pictures / "rex/01_0.png").read_bytes()
    (pictures / "rex/01_0.png").write_bytes(whole_png[:-40])
    Image.new("RGB", (16, 16), "red").save(pictures / "plush/02_0.png")
    again: list[str] = []
    write = PictureFolder.write

    def noted(self: PictureFolder, case: object, index: int, picture: Image.Image) -> None:
        again.append(str(self.path(case, index).relative_to(self.root)))  # type: ignore[arg-type]
        write(self, case, index, picture)  # type: ignore[arg-type]

    monkeypatch.setattr(PictureFolder, "write", noted)
    before = (out / "scores" / "0.jsonl").read_bytes()
    assert evaluate_system(find_system(str(recipe)), open_it(), out, quiet()) is not None
    assert again == ["rex/00_1.png", "rex/01_0.png", "plush/02_0.png"]
    assert bytes_of(out) == bytes_of(folder_of(whole))
    assert (out / "scores" / "0.jsonl").read_bytes() == before, "the pictures are those that were scored"


def test_a_new_metric_is_added_and_another_system_refused(
    whole: Evaluated, recipe: Path, tuned: Path, tmp_path: Path, protocol: Path, dreambench: Path,
    open_it: Callable[..., Task],
) -> None:  # fmt: skip
    out, system = tmp_path / "out", find_system(str(recipe))
    shutil.copytree(folder_of(whole), out)
    text = protocol.read_text(encoding="utf-8")
    more = tmp_path / "more.yaml"
    more.write_text(text.replace("metrics:\n", "metrics:\n- {name: same, kind: copy-paste, role: guard}\n"), "utf-8")
    found = evaluate_system(system, open_task(str(dreambench), protocol=str(more)), out, quiet())
    assert found is not None
    assert found.scores.values["same"] == found.scores.values["copy-paste"]
    assert read_records(out / "scores" / "0.jsonl")[-1]["scores"].keys() == {"same"}
    with pytest.raises(ConfigError, match="another seed; give another --out"):
        evaluate_system(system, open_it(seed=1), out, quiet())
    with pytest.raises(ConfigError, match="another system"):
        evaluate_system(find_system(str(tuned)), open_it(), out, quiet())
    more.write_text(text.replace("segmented: false", "segmented: true"), "utf-8")
    with pytest.raises(ConfigError, match="another metric 'DINO-I'"):
        evaluate_system(system, open_task(str(dreambench), protocol=str(more)), out, quiet())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="something other than an evaluation"):
        evaluate_system(system, open_it(), tmp_path / "other", quiet())


def test_pictures_of_another_system(whole: Evaluated, tmp_path: Path, open_it: Callable[..., Task]) -> None:
    """Their scores are those that the same pictures had as our own; what is missing is named."""
    theirs = tmp_path / "theirs"
    for name, data in bytes_of(folder_of(whole)).items():
        subject, prompt, index = name[:-4].replace("/", "_").split("_")
        path = theirs / index / f"{subject}-{int(prompt)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    template = "{index}/{subject}-{prompt}.png"
    evaluate_on(str(theirs), open_it(), tmp_path / "out", quiet(), template=template)
    assert scores_of(tmp_path / "out") == scores_of(folder_of(whole))
    assert not (tmp_path / "out" / "pictures").exists()
    (theirs / "1" / "rex-2.png").unlink()
    (theirs / "0" / "plush-0.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        evaluate_on(str(theirs), open_it(), tmp_path / "new", quiet(), template=template)
    first, second = caught.value.problems
    assert first.startswith(f"{theirs / '1' / 'rex-2.png'}: no such image")
    assert second.startswith(f"{theirs / '0' / 'plush-0.png'}: not an image")
    assert not (tmp_path / "new").exists()


def test_pictures_of_several_sizes_and_another_scored_anew(tmp_path: Path, open_it: Callable[..., Task]) -> None:
    theirs = tmp_path / "theirs" / "rex"
    theirs.mkdir(parents=True)
    for index, (size, colour) in enumerate([((16, 16), "black"), ((24, 16), "red")]):
        Image.new("RGB", size, colour).save(theirs / f"00_{index}.png")
    task, out = open_it(subjects=["rex"], prompts=[0]), tmp_path / "out"
    for expected in ([0.0, 100.0], [100.0, 100.0]):
        found = evaluate_system(find_system(str(theirs.parent)), task, out, quiet())
        assert found is not None
        assert found.scores.values["redness"] == [pytest.approx(expected)]
        Image.new("RGB", (16, 16), "red").save(theirs / "00_0.png")


def test_a_missing_score_is_told_of_and_left_out(
    tmp_path: Path, dreambench: Path, protocol: Path, recipe: Path
) -> None:
    (tmp_path / "odd.py").write_text(
        "def odd(images, pairs):\n    return [float('nan') if 'red' in p.prompt else 1.0 for p in pairs]\n", "utf-8"
    )
    own = tmp_path / "own.yaml"
    own.write_text(
        f"{{title: odd, images: 1, steps: 1, metrics: [{{name: odd, kind: '{tmp_path}/odd.py:odd', role: prompt}}]}}",
        "utf-8",
    )
    task = open_task(str(dreambench), protocol=str(own), subjects=["plush", "brolly"])
    found = evaluate_system(find_system(str(recipe)), task, tmp_path / "out", quiet())
    assert found is not None
    told = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert told["missing"] == {"odd": 2}
    assert (told["overall"]["odd"]["mean"], told["property"]["odd"]) == (1.0, None)
    assert evaluate_system(find_system(str(recipe)), task, tmp_path / "out", quiet()) is not None


def test_a_judge_that_cannot_be_loaded_is_known_before_anything_is_drawn(
    tmp_path: Path, dreambench: Path, recipe: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("{title: own, metrics: [{name: a, kind: dino, role: identity, path: ./nowhere}]}", "utf-8")
    with pytest.raises(ValueError, match="nowhere"):
        evaluate_system(
            find_system(str(recipe)), open_task(str(dreambench), protocol=str(own)), tmp_path / "o", quiet()
        )
    assert not (tmp_path / "o" / "pictures").exists()


def test_the_built_in_world_has_masks_for_the_subject(tmp_path: Path, recipe: Path) -> None:
    task = open_task("world", protocol="embedded", images=2, steps=1, subjects=["00003"])
    assert not task.skipped
    found = evaluate_system(find_system(str(recipe)), task, tmp_path / "out", quiet())
    assert found is not None
    assert found.scores.values["DINO-I (subject)"] != found.scores.values["DINO-I"]
    assert list(found.scores.sections) == ["overall"]


def test_two_subjects(tmp_path: Path, dreambench: Path, protocol: Path, recipe: Path, dino: Path) -> None:
    task = open_task(str(dreambench), protocol=str(protocol), two_subjects=True, subjects=["rex+plush"], prompts=[0])
    found = evaluate_system(find_system(str(recipe)), task, tmp_path / "out", quiet())
    assert found is not None
    judge = build_reward(
        RewardConfig(kind="dino", role="identity", path=str(dino), options={"segmented": False}), "cpu"
    )
    picture = to_tensor(load(found.pictures.path(task.cases[0], 0)))[None]
    means = []
    for subject in ("rex", "plush"):
        photos = tuple(load(path) for path in sorted((dreambench / subject).iterdir()))
        means.append(float(judge(picture, [Pair(subject, "", photos, (None,) * len(photos))])))
    assert means[0] != pytest.approx(means[1])
    # Each subject counts alike, whatever the number of its photos.
    assert found.scores.values["DINO-I"][0][0] == pytest.approx(sum(means) / 2, abs=1e-3)


def test_a_records_file_of_something_else(whole: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "0.jsonl").write_text('{"case": "rex/00"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"0.jsonl:1: not a record"):
        EvaluationFolder(tmp_path).scores()
