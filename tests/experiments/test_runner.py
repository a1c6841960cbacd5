"""A study's processes get a GPU each, and the base model's evaluation."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from customized_grpo.config.loading import load_config, save_config
from customized_grpo.evaluation import read_evaluation
from customized_grpo.utils.records import sweep
from experiments.study.plan import StudyRun
from experiments.study.runner import _lend_base, environment


@pytest.mark.parametrize(
    ("given", "gpus", "expected"),
    [
        (None, 2, ["0", "1", "0"]),
        ("2,3", 2, ["2", "3", "2"]),
        (" GPU-1f, MIG-2e ,", 2, ["GPU-1f", "MIG-2e", "GPU-1f"]),
        ("5", 1, ["5", "5", "5"]),
        ("2,3,-1,0", 2, ["2", "3", "2"]),  # CUDA itself ends the list at the first that is none
    ],
)
def test_runs_share_the_gpus_that_the_user_names(
    given: str | None, gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert [environment(place, 3) for place in range(3)] == [{"CUDA_VISIBLE_DEVICES": one} for one in expected]


def test_a_base_that_is_reused_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config()
    first, second = StudyRun("first", 0, config), StudyRun("second", 0, config)
    for run in (first, second):
        (tmp_path / run.folder).mkdir(parents=True)
        save_config(config, tmp_path / run.folder / "config.yaml")
    base, mine = (tmp_path / run.folder / "evaluation" / "base" for run in (first, second))
    base.mkdir(parents=True)
    names = ["00000-0.png", "00000-1.png"]
    for name in names:
        (base / name).write_bytes(name.encode())
    settings = config.evaluation.model_dump(mode="json")
    (base / "scores.json").write_text(json.dumps({"scores": {}, "images": names, "settings": settings}))
    copy = shutil.copy2

    def killed(source: str, target: str, **options: bool) -> str:
        if Path(source).name == names[1]:
            raise KeyboardInterrupt
        return str(copy(source, target, **options))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", partial(shutil.copytree, copy_function=killed))
        with pytest.raises(KeyboardInterrupt):
            _lend_base(tmp_path, second)
    assert list(mine.parent.rglob("*.*")), "it was cut off half-way"
    assert not mine.exists() and read_evaluation(mine, config.evaluation) is None
    _lend_base(tmp_path, second)
    assert {file.name: file.read_bytes() for file in mine.iterdir()} == {
        file.name: file.read_bytes() for file in base.iterdir()
    }
    assert [path.name for path in mine.parent.iterdir()] == ["base"], "nothing of the first is left"
    sweep(mine.parent)
    assert mine.is_dir()
