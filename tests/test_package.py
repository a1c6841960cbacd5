"""The wheel and the sdist contain all that the embedded default needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from the clone and the wheel from the sdist, as a release does."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    assert list(folder.glob("*.tar.gz"))
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_trains_the_embedded_model(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    small = ["train.iterations=1", "rollout.pairs=1", "rollout.group_size=2", "rollout.steps=2", "data.size=2"]
    small += ["evaluation.data.size=1", "evaluation.steps=1"]
    command = [sys.executable, "-m", "customized_grpo", "train", "--out", "run"]
    done = subprocess.run(
        command + [part for setting in small for part in ("--set", setting)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").exists()
    shown = subprocess.run(
        [sys.executable, "-c", "import customized_grpo; print(customized_grpo.__file__)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert str(tmp_path) in shown.stdout, "the wheel's own files were tested"


def test_the_wheel_has_types_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "customized_grpo/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "experiments/", "benchmarks/"))]
