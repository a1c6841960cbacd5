"""The benchmark counts what it says it counts, and leaves what it says it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import cgrpo
from diffusers import FluxTransformer2DModel
from PIL import Image

import customized_grpo
from benchmarks.iteration.growth import Point, by_axis, slope
from benchmarks.iteration.iteration import OURS, RELEASED, STAGES, Stage, measure, runs_of
from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.trainer.assembly import reward_terms

GROUP, STEPS, PAIRS = 3, 4, 2


@pytest.fixture(scope="module")
def config() -> Config:
    sizes = {"rollout.group_size": GROUP, "rollout.steps": STEPS, "rollout.pairs": PAIRS, "train.updates": 1}
    return load_config(None, [f"{key}={value}" for key, value in sizes.items()])


@pytest.fixture(scope="module")
def measured(config: Config) -> dict[str, dict[str, Stage]]:
    policy, dataset = build_policy(config.policy), open_dataset(config.data)
    rewards = reward_terms(config.rewards, policy.device)
    calls: list[None] = []
    pairs, shapes = [dataset[0], dataset[1]], (OURS, RELEASED)
    with libraries_own():  # so that both shapes have the same operations
        found = measure(config, policy, rewards, pairs, shapes, 1, lambda: calls.append(None))
    assert len(calls) == runs_of(2, 1)
    return found


def test_every_stage_takes_time_work_and_memory(measured: dict[str, dict[str, Stage]]) -> None:
    for stages in measured.values():
        assert tuple(stages) == STAGES
        for stage in stages.values():
            assert stage.seconds > 0 and stage.flops > 0 and stage.peak_bytes > 0


def test_operations_are_those_of_the_work(measured: dict[str, dict[str, Stage]]) -> None:
    """Of the same algorithmic work, whole groups spare what images have in common, and nothing else."""
    ours, released = measured[OURS.name], measured[RELEASED.name]
    images = PAIRS * GROUP
    assert released["encode"].flops == GROUP * ours["encode"].flops
    calls = PAIRS + images * (STEPS - 1)  # a group's first step is one image's
    assert released["sample"].flops / ours["sample"].flops == pytest.approx(images * STEPS / calls)
    assert released["decode"].flops == ours["decode"].flops
    trained = PAIRS + images * (STEPS - 2)
    assert released["update"].flops / ours["update"].flops == pytest.approx(images * (STEPS - 1) / trained, rel=0.01)
    # Back through the adapted layers takes about what forth takes, once more.
    forth = ours["sample"].flops / calls
    assert 1.8 < ours["update"].flops / trained / forth < 3


def test_whole_groups_take_more_memory(measured: dict[str, dict[str, Stage]]) -> None:
    for stage in ("sample", "update"):
        assert measured[OURS.name][stage].peak_bytes > 2 * measured[RELEASED.name][stage].peak_bytes


def test_a_slope_is_the_power_of_growth() -> None:
    points = [Point("side", at, 3 * at**2, 5 * at) for at in (16, 32, 64)]
    assert slope(points, "seconds") == pytest.approx(2)
    assert slope(points, "peak_bytes") == pytest.approx(1)
    assert by_axis([*points, Point("other", 1, 1, 1)]).keys() == {"side", "other"}


def test_the_command_leaves_its_files(tmp_path: Path) -> None:
    sizes = {
        "rollout.group_size": 2, "rollout.steps": 2, "rollout.pairs": 1,
        "policy.height": 32, "policy.width": 32, "policy.reference_sizes": "[[32, 32]]",
    }  # fmt: skip
    small = [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    done = cgrpo(
        "-m", "benchmarks.iteration", *small, "--against", "policy.dtype=bfloat16",
        "--repeats", "1", "--growth", "--out", "out",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "whole groups: " in done.stdout and "as fast as one image at a time" in " ".join(done.stdout.split())
    kept = json.loads((tmp_path / "out/bench.json").read_text(encoding="utf-8"))
    assert set(kept["stages"]) == {OURS.name, RELEASED.name, "the settings compared"}
    for stages in kept["stages"].values():
        assert tuple(stages) == (*STAGES, "iteration")
        assert stages["iteration"]["seconds"] == pytest.approx(sum(stages[stage]["seconds"] for stage in STAGES))
    assert kept["peak flops"]["float32"] > 1e9
    with Image.open(tmp_path / "out/growth.png") as picture:
        assert min(picture.size) > 200
    table = (tmp_path / "out/growth.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 2 + 4 * 4


def test_a_key_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = cgrpo("-m", "benchmarks.iteration", "--against", "policy.dtyp=bfloat16", folder=tmp_path)
    assert done.returncode == 2 and "policy.dtyp" in done.stderr and "Traceback" not in done.stderr


def test_random_weights_of_flux_are_measured_without_a_hub(tmp_path: Path) -> None:
    """The benchmark of a large GPU, in small: the same script and settings."""
    recipes = Path(__file__).parents[2] / "recipes" / "random"
    script = [sys.executable, recipes / "flux1.py", "models/random-flux1", "--tiny"]
    made = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    small = {
        "policy.height": 64, "policy.width": 64, "policy.reference_sizes": "[[64, 64]]",
        "policy.max_sequence_length": 16, "rollout.steps": 2, "rollout.group_size": 2,
    }  # fmt: skip
    told = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    done = cgrpo(
        "-m", "benchmarks.iteration", "--config", str(recipes / "flux1.yaml"), *told, "--alone",
        "--repeats", "1", "--out", "out",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "s an image drawn" in text and "s an image trained" in text
    kept = json.loads((tmp_path / "out/bench.json").read_text(encoding="utf-8"))
    assert set(kept["stages"]) == {OURS.name} and kept["precisions"] == {OURS.name: "bfloat16"}
    assert kept["stages"][OURS.name]["iteration"]["held_bytes"] == 0  # not known on a CPU


def test_the_random_transformer_is_as_large_as_flux() -> None:
    settings = load_config(Path(__file__).parents[2] / "recipes" / "random" / "flux1.yaml")
    policy, rollout = settings.policy, settings.rollout
    assert (policy.dtype, policy.height, policy.width) == ("bfloat16", 512, 512)
    assert (rollout.group_size, rollout.steps) == (8, 10)
    assert policy.lora is not None and policy.lora.rank == 64
    known = json.loads(
        (Path(customized_grpo.__file__).parent / "models" / "known_models.json").read_text(encoding="utf-8")
    )
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(known["parts"]["flux.1-transformer"])
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(11.9e9, rel=0.005)
