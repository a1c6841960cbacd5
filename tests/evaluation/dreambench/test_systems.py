"""Systems of the command line: each form of one model generates the same images."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from customized_grpo.config import ConfigError
from customized_grpo.evaluation.dreambench import open_task
from customized_grpo.evaluation.dreambench.evaluation import evaluate_system
from customized_grpo.evaluation.dreambench.systems import find_system
from customized_grpo.policies.adapters import lora_settings
from customized_grpo.utils.hub import ModelError

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def draw(dreambench: Path, protocol: Path, tmp_path: Path) -> Callable[..., bytes]:
    """One image by the system that a word and files stand for."""
    task = open_task(str(dreambench), protocol=str(protocol), images=1, subject=["rex"], prompt=[0])

    def make(given: str, *files: Path) -> bytes:
        out = tmp_path / "drawn" / str(len(list(tmp_path.glob("drawn/*"))))
        found = evaluate_system(find_system(given, files), task, out, Console(file=io.StringIO()))
        assert found is not None
        return found.images.path(task.cases[0], 0).read_bytes()

    return make


def test_a_lora_generates_what_its_run_does_and_the_rest_is_the_base(
    draw: Callable[..., bytes], tuned: Path, recipe: Path, pipeline: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copyfile(tuned / "lora" / FILE, alone)
    of_run, base = draw(str(tuned)), draw(str(recipe))
    assert of_run != base
    assert draw(f"lora={alone}", recipe) == of_run, "its rank and alpha are read from the file"
    assert draw(str(tuned / "lora"), recipe) == of_run
    assert draw(str(pipeline), recipe) == base


def test_names(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    for given, name in (
        (f"mine={tuned}", "mine"),
        ("embedded/pipeline", "embedded-pipeline"),
        (str(tmp_path / "a=b"), "a=b"),
    ):
        assert find_system(given).name == name


def test_settings_tell_weights_apart_but_not_devices(tuned: Path, recipe: Path) -> None:
    run = find_system(str(tuned))
    assert run.settings() == find_system(str(tuned), overrides=["policy.device=null"]).settings()
    assert run.settings() != find_system(str(recipe)).settings()
    assert run.settings() != find_system(str(tuned), overrides=["policy.guidance=1"]).settings()


def test_a_lora_without_metadata_has_its_rank_as_alpha(tuned: Path, tmp_path: Path) -> None:
    assert (lora_settings(tuned / "lora").rank, lora_settings(tuned / "lora").alpha) == (3, 6.0)
    weights = load_file(tuned / "lora" / FILE)
    save_file(weights, tmp_path / "plain.safetensors")
    assert lora_settings(tmp_path / "plain.safetensors").alpha == 3.0


def test_files_that_are_no_lora(tuned: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a LoRA in safetensors"):
        find_system(str(path))
    weights = load_file(tuned / "lora" / FILE)
    name = next(name for name in weights if name.endswith("lora_A.weight"))
    save_file({**weights, name: weights[name][:1].contiguous()}, path)
    with pytest.raises(ModelError, match="ranks 1 to 3"):
        find_system(str(path))


def test_paths_that_lead_nowhere(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such run, model"):
        find_system("nowhere")
    with pytest.raises(ModelError, match="no such folder"):
        find_system(str(recipe), overrides=["policy.path=./nowhere"])
    shutil.copyfile(recipe, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="has no lora yet; finish it"):
        find_system(str(tmp_path))


def test_an_earlier_evaluation_is_read_and_by_other_measures_scored_anew(
    dreambench: Path, protocol: Path, recipe: Path, tmp_path: Path
) -> None:
    task = open_task(str(dreambench), protocol=str(protocol), subject=["rex"])
    first = evaluate_system(find_system(str(recipe)), task, tmp_path / "first", Console(file=io.StringIO()))
    assert first is not None
    system = find_system(str(tmp_path / "first"))
    again = evaluate_system(system, task, tmp_path / "again", Console(file=io.StringIO()))
    assert again is not None and again.scores.values == first.scores.values
    assert not (tmp_path / "again").exists()
    other = tmp_path / "other.yaml"
    other.write_text("{title: other, images: 2, metrics: [{name: DINO-I, kind: copy-paste, role: guard}]}", "utf-8")
    task = open_task(str(dreambench), protocol=str(other), subject=["rex"])
    anew = evaluate_system(system, task, tmp_path / "again", Console(file=io.StringIO()))
    assert anew is not None and anew.scores.values["DINO-I"] == first.scores.values["copy-paste"]
    message = json.loads((tmp_path / "again" / "settings.json").read_text(encoding="utf-8"))
    assert message["system"]["images"] == str(tmp_path / "first" / "images")
