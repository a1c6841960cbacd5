"""A folder of checkpoints after whatever happened: which one wins, which stay, what is on the disk before its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from embedded import embedded

from customized_grpo.config import TrainConfig
from customized_grpo.protocols import Policy
from customized_grpo.trainer.checkpoint import (
    CheckpointError,
    checkpointed_iterations,
    fault_of,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from customized_grpo.trainer.folder import make_folder, new_folder
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.processes import ALONE


@pytest.fixture
def save(policy: Policy, tmp_path: Path) -> Callable[..., Path]:
    optimizer = build_optimizer(list(policy.trainable().values()), embedded(TrainConfig), ALONE)
    return lambda iteration, keep=2: save_checkpoint(tmp_path, iteration, policy, optimizer, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(checkpoint: Path) -> None:
    file = checkpoint / "state.json"
    damaged = bytearray(file.read_bytes())
    damaged[-2] ^= 1
    file.write_bytes(damaged)


def test_the_newest_stay_and_a_damaged_newer_one_neither_wins_nor_drives_out_a_whole_one(
    save: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for iteration in (1, 2):
        save(iteration, keep=1)
    damage(save(4, keep=2))
    assert names(tmp_path) == ["000002", "000004"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "000002"
    assert "000004: damaged, state.json is not what was written; resuming from 000002" in caplog.text
    save(3, keep=1)
    assert names(tmp_path) == ["000003", "000004"]
    save(4, keep=1)
    assert names(tmp_path) == ["000004", "000004.damaged"]
    assert fault_of(tmp_path / "000004") is None


def test_state_that_does_not_fit_is_refused_by_name_or_begins_anew(
    policy: Policy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = build_optimizer(list(policy.trainable().values()), embedded(TrainConfig), ALONE)
    stored = {"balance.multipliers": torch.ones(2), "mine.count": torch.ones(2)}
    folder = save_checkpoint(tmp_path, 1, policy, optimizer, 2, stored)
    other = {"balance.multipliers": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="has a balance state of another shape; restore method"):
        load_checkpoint(folder, policy, optimizer, other)
    present = {"balance.multipliers": torch.zeros(2), "mine.count": torch.zeros(1), "new.count": torch.zeros(3)}
    assert load_checkpoint(folder, policy, optimizer, present) == 1
    assert [one.tolist() for one in present.values()] == [[1, 1], [0], [0, 0, 0]]
    for text in ("has a mine state of another shape (mine.count), which begins", "has no new state (new.count), which"):
        assert text in caplog.text


def test_where_none_is_whole_nothing_begins_anew(save: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert checkpointed_iterations(tmp_path / "run") == 0
    damage(save(2))
    with pytest.raises(CheckpointError, match=r"000002: damaged, state\.json .*; put back a copy of it, or start"):
        newest_checkpoint(tmp_path)


def test_a_whole_one_is_left_alone(save: Callable[..., Path]) -> None:
    checkpoint = save(2)
    before = (checkpoint / "state.safetensors").stat()
    assert save(2) == checkpoint
    assert (checkpoint / "state.safetensors").stat() == before


def test_a_manifest_names_its_version(save: Callable[..., Path]) -> None:
    manifest = save(2) / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"version": 1', '"version": 7'), encoding="utf-8")
    assert "has format version 7" in str(fault_of(manifest.parent))
    manifest.unlink()
    assert "as those of older versions of this package do" in str(fault_of(manifest.parent))


def test_all_of_it_is_on_the_disk_before_it_has_its_name(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power keeps what was flushed: every file, every folder's names, then the new name."""
    flushed: list[str] = []
    flush, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    def move(source: str | Path, target: str | Path) -> None:
        if Path(target).name == "000002":
            within = {str(path) for path in Path(source).rglob("*")} | {str(source)}
            assert within <= set(flushed), within - set(flushed)
            flushed.append("moved")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", move)
    save(2)
    assert flushed[-2:] == ["moved", str(tmp_path)]


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    name = new_folder(tmp_path)
    first, second = make_folder(name), make_folder(name)
    assert first == name and second != name and first.is_dir() and second.is_dir()
