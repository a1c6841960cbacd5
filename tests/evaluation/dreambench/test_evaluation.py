"""An evaluation from end to end: its files, its means, and that only its settings decide them."""

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
from customized_grpo.data.image_files import load
from customized_grpo.evaluation.dreambench import evaluate_on, evaluation, open_task
from customized_grpo.evaluation.dreambench.evaluation import Evaluated, Task, evaluate_system
from customized_grpo.evaluation.dreambench.folder import EvaluationFolder
from customized_grpo.evaluation.dreambench.systems import find_system
from customized_grpo.protocols import Pair
from customized_grpo.rewards import build_reward
from customized_grpo.utils.noise import normal
from customized_grpo.utils.pixels import save_image, to_tensor
from customized_grpo.utils.records import read_records

Open = Callable[..., Task]


def evaluated(given: Path, task: Task, out: Path) -> Evaluated | None:
    return evaluate_system(find_system(str(given)), task, out, Console(file=io.StringIO(), width=200))


@pytest.fixture
def open_it(dreambench: Path, protocol: Path) -> Open:
    def make(**options: object) -> Task:
        return open_task(str(dreambench), **{"protocol": str(protocol), **options})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dreambench: Path, protocol: Path, recipe: Path) -> Path:
    """Evaluation of the base model on all of the small benchmark. Not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "base"
    assert evaluated(recipe, open_task(str(dreambench), protocol=str(protocol)), out) is not None
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.fixture(scope="module")
def similarity(dino: Path) -> Callable[[Path, Path], float]:
    reward = build_reward(
        RewardConfig(kind="dino", role="identity", path=str(dino), options={"segmented": False}), "cpu"
    )

    def measured(image: Path, photo: Path) -> float:
        return float(reward(to_tensor(load(image))[None], [Pair(str(photo), "", (load(photo),), (None,))]))

    return measured


def images_of(folder: Path) -> dict[str, bytes]:
    root = folder / "images"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def scores_of(folder: Path) -> dict[str, dict[str, list[float]]]:
    records = [record for path in (folder / "scores").glob("*.jsonl") for record in read_records(path)]
    return {record["case"]: record["scores"] for record in records}


def summary_of(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_files_of_an_evaluation(whole: Path) -> None:
    cases = [f"{subject}/0{prompt}" for subject in ("rex", "plush", "brolly") for prompt in range(3)]
    names = [f"{case}_{index}.png" for case in cases for index in range(2)]
    assert sorted(images_of(whole)) == sorted(names)
    assert len({*images_of(whole).values()}) == len(names), "each from noise of its own"
    assert sorted(scores_of(whole)) == sorted(cases)
    text = (whole / "table.md").read_text(encoding="utf-8")
    assert all(f"| {row} |" in text for row in ("overall", "place", "property", "accessory", "rex", "brolly"))
    assert "| style |" not in text


def test_noise_is_a_function_of_seed_subject_prompt_and_index(whole: Path, recipe: Path, dreambench: Path) -> None:
    policy = find_system(str(recipe)).open()
    conditions = policy.encode("a stuffed animal on the beach", [load(dreambench / "plush" / "00.png")])
    noise = normal((1, *policy.latent_shape), 0, "benchmark", "plush/01", 1)
    (image,) = evaluation.sample_images(policy, conditions, noise, policy.sigmas(2))
    kept = load(whole / "images" / "plush/01_1.png")
    assert torch.equal((image * 255).round(), (to_tensor(kept) * 255).round())


def test_scores_are_those_of_the_reward_against_all_photos(
    whole: Path, dreambench: Path, similarity: Callable[[Path, Path], float]
) -> None:
    generated = [whole / "images" / f"plush/01_{index}.png" for index in range(2)]
    photos, scores = sorted((dreambench / "plush").iterdir()), scores_of(whole)["plush/01"]
    expected = [sum(similarity(image, photo) for photo in photos) / 3 for image in generated]
    assert scores["DINO-I"] == pytest.approx(expected, abs=1e-3)
    assert scores["diversity (DINO-I)"] == pytest.approx([100 - similarity(*generated)] * 2, abs=1e-3)
    reds = [100 * float(to_tensor(load(image))[0].mean()) for image in generated]
    assert scores["redness"] == pytest.approx(reds, abs=1e-3)


def test_two_subjects_count_alike(
    tmp_path: Path, dreambench: Path, recipe: Path, open_it: Open, similarity: Callable[[Path, Path], float]
) -> None:
    task = open_it(two_subjects=True, subject=["rex+plush"], prompt=[0])
    found = evaluated(recipe, task, tmp_path / "out")
    assert found is not None
    image, means = found.images.path(task.cases[0], 0), []
    for subject in ("rex", "plush"):
        photos = sorted((dreambench / subject).iterdir())
        means.append(sum(similarity(image, photo) for photo in photos) / len(photos))
    assert means[0] != pytest.approx(means[1])
    assert found.scores.values["DINO-I"][0][0] == pytest.approx(sum(means) / 2, abs=1e-3)


def test_means_over_subjects_by_kind_and_overall(whole: Path) -> None:
    summary, scores = summary_of(whole), scores_of(whole)

    def mean(*cases: str) -> float:
        values = [value for case in cases for value in scores[case]["DINO-I"]]
        return sum(values) / len(values)

    by_subject = [mean(*(f"{subject}/0{i}" for i in range(3))) for subject in ("rex", "plush", "brolly")]
    assert list(summary["overall"]["DINO-I"].values()) == pytest.approx(
        [sum(by_subject) / 3, min(by_subject), max(by_subject)]
    )
    assert summary["by subject"]["plush"]["DINO-I"] == pytest.approx(by_subject[1])
    places = [mean("rex/00"), mean("plush/00", "plush/01"), mean("brolly/00", "brolly/01")]
    assert summary["place"]["DINO-I"]["mean"] == pytest.approx(sum(places) / 3), "each subject counts once"
    assert summary["accessory"]["DINO-I"]["mean"] == pytest.approx(mean("rex/01"))
    assert [summary[key] for key in ("subjects", "cases", "images", "missing")] == [3, 9, 18, {}]


def test_a_part_and_several_processes_generate_the_same(
    whole: Path, recipe: Path, tmp_path: Path, open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluated(recipe, open_it(subject=["plush"], prompt=[1], images=3), tmp_path / "part") is not None
    expected, part = images_of(whole), images_of(tmp_path / "part")
    assert len(part) == 3
    assert all(part[name] == expected[name] for name in ("plush/01_0.png", "plush/01_1.png"))
    ended = []
    for process in range(2):
        monkeypatch.setenv("RANK", str(process))
        monkeypatch.setenv("WORLD_SIZE", "2")
        ended.append(evaluated(recipe, open_it(), tmp_path / "shared"))
    assert ended[0] is None and ended[1] is not None, "the last one writes the summary"
    assert len(read_records(tmp_path / "shared" / "scores" / "1.jsonl")) == 4
    assert images_of(tmp_path / "shared") == expected
    assert scores_of(tmp_path / "shared") == scores_of(whole)


def test_it_resumes_image_by_image(
    whole: Path, recipe: Path, tmp_path: Path, open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, generated = evaluation.sample_images, 0

    def counted(*arguments: object) -> torch.Tensor:
        nonlocal generated
        if generated == 5:
            raise KeyboardInterrupt
        generated += 1
        return sample(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "sample_images", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(recipe, open_it(), tmp_path / "out")
    assert len(images_of(tmp_path / "out")) == 5
    generated = -8
    assert evaluated(recipe, open_it(), tmp_path / "out") is not None
    assert generated == 5, "the other 13, and no more"
    assert images_of(tmp_path / "out") == images_of(whole)
    assert scores_of(tmp_path / "out") == scores_of(whole)


def test_damaged_missing_and_exchanged_images_are_generated_again(
    whole: Path, copied: Path, recipe: Path, open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "images/rex/00_1.png").unlink()
    (copied / "images/rex/01_0.png").write_bytes((copied / "images/rex/01_0.png").read_bytes()[:-40])
    Image.new("RGB", (16, 16), "red").save(copied / "images/plush/02_0.png")
    again: list[str] = []

    def noted(image: Image.Image, path: Path) -> None:
        again.append(str(path.relative_to(copied / "images")))
        save_image(image, path)

    monkeypatch.setattr("customized_grpo.evaluation.dreambench.evaluation.save_image", noted)
    assert evaluated(recipe, open_it(), copied) is not None
    assert again == ["rex/00_1.png", "rex/01_0.png", "plush/02_0.png"]
    assert images_of(copied) == images_of(whole)
    assert (copied / "scores/0.jsonl").read_bytes() == (whole / "scores/0.jsonl").read_bytes(), "nothing scored again"


def test_a_new_metric_is_added_and_other_settings_are_refused(
    copied: Path, recipe: Path, tuned: Path, tmp_path: Path, protocol: Path, open_it: Open
) -> None:
    text, more = protocol.read_text(encoding="utf-8"), tmp_path / "more.yaml"
    more.write_text(text.replace("metrics:\n", "metrics:\n- {name: same, kind: copy-paste, role: guard}\n"), "utf-8")
    found = evaluated(recipe, open_it(protocol=str(more)), copied)
    assert found is not None
    assert found.scores.values["same"] == found.scores.values["copy-paste"]
    assert read_records(copied / "scores" / "0.jsonl")[-1]["scores"].keys() == {"same"}
    with pytest.raises(ConfigError, match="another seed; give another --out"):
        evaluated(recipe, open_it(seed=1), copied)
    with pytest.raises(ConfigError, match="another system"):
        evaluated(tuned, open_it(), copied)
    more.write_text(text.replace("segmented: false", "segmented: true"), "utf-8")
    with pytest.raises(ConfigError, match="another metric 'DINO-I'"):
        evaluated(recipe, open_it(protocol=str(more)), copied)
    with pytest.raises(ConfigError, match="something other than an evaluation"):
        evaluated(recipe, open_it(), tmp_path)


def test_images_of_another_system(whole: Path, tmp_path: Path, open_it: Open) -> None:
    """Their scores are those that the same images had as our own; missing ones are named."""
    theirs, template, console = tmp_path / "theirs", "{index}/{subject}-{prompt}.png", Console(file=io.StringIO())
    for name, data in images_of(whole).items():
        subject, prompt, index = name[:-4].replace("/", "_").split("_")
        path = theirs / index / f"{subject}-{int(prompt)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    evaluate_on(str(theirs), open_it(), tmp_path / "out", console, template=template)
    assert scores_of(tmp_path / "out") == scores_of(whole)
    assert not (tmp_path / "out" / "images").exists()
    (theirs / "1" / "rex-2.png").unlink()
    (theirs / "0" / "plush-0.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        evaluate_on(str(theirs), open_it(), tmp_path / "new", console, template=template)
    first, second = caught.value.problems
    assert first.startswith(f"{theirs / '1' / 'rex-2.png'}: no such image")
    assert second.startswith(f"{theirs / '0' / 'plush-0.png'}: not an image")
    assert not (tmp_path / "new").exists()


def test_images_of_several_sizes_and_an_exchanged_one_are_scored_anew(tmp_path: Path, open_it: Open) -> None:
    theirs = tmp_path / "theirs" / "rex"
    theirs.mkdir(parents=True)
    for index, (size, colour) in enumerate([((16, 16), "black"), ((24, 16), "red")]):
        Image.new("RGB", size, colour).save(theirs / f"00_{index}.png")
    task = open_it(subject=["rex"], prompt=[0])
    for expected in ([0.0, 100.0], [100.0, 100.0]):
        found = evaluated(theirs.parent, task, tmp_path / "out")
        assert found is not None and found.scores.values["redness"] == [pytest.approx(expected)]
        Image.new("RGB", (16, 16), "red").save(theirs / "00_0.png")


def test_a_missing_score_is_reported_and_skipped(tmp_path: Path, recipe: Path, open_it: Open) -> None:
    code = "def odd(images, pairs):\n    return [float('nan') if 'red' in p.prompt else 1.0 for p in pairs]\n"
    (tmp_path / "odd.py").write_text(code, "utf-8")
    metric, own = f"{{name: odd, kind: '{tmp_path}/odd.py:odd', role: prompt}}", tmp_path / "own.yaml"
    own.write_text(f"{{title: odd, images: 1, steps: 1, metrics: [{metric}]}}", "utf-8")
    task = open_it(protocol=str(own), subject=["plush", "brolly"])
    assert evaluated(recipe, task, tmp_path / "out") is not None
    summary = summary_of(tmp_path / "out")
    assert summary["missing"] == {"odd": 2}
    assert (summary["overall"]["odd"]["mean"], summary["property"]["odd"]) == (1.0, None)


def test_problems_before_anything_is_generated(tmp_path: Path, recipe: Path, open_it: Open) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("{title: own, metrics: [{name: a, kind: dino, role: identity, path: ./nowhere}]}", "utf-8")
    with pytest.raises(ValueError, match="nowhere"):
        evaluated(recipe, open_it(protocol=str(own)), tmp_path / "o")
    assert not (tmp_path / "o" / "images").exists()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "0.jsonl").write_text('{"case": "rex/00"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"0.jsonl:1: not a record"):
        EvaluationFolder(tmp_path).scores()


def test_the_built_in_world_has_masks_for_the_subject(tmp_path: Path, recipe: Path) -> None:
    task = open_task("world", protocol="embedded", images=2, steps=1, subject=["00003"])
    assert not task.skipped
    found = evaluated(recipe, task, tmp_path / "out")
    assert found is not None
    assert found.scores.values["DINO-I (subject)"] != found.scores.values["DINO-I"]
    assert list(found.scores.sections) == ["overall"]
