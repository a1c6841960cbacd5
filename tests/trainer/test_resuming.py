"""A resumed run checks before it touches anything: lost checkpoints, other settings, other data."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from running import make_trainer, metrics_of

from customized_grpo.config import Config, ConfigError, DataConfig
from customized_grpo.data import open_dataset
from customized_grpo.data.fingerprints import difference, fingerprint
from customized_grpo.protocols import Policy
from customized_grpo.trainer import resuming
from customized_grpo.trainer.checkpoint import CheckpointError
from customized_grpo.trainer.evaluation import read_evaluation
from customized_grpo.trainer.folder import check_unused
from customized_grpo.trainer.resuming import changes, check_resumable, origin
from customized_grpo.utils.records import RecordError

Make = Callable[..., Config]


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def content(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if ".lock" not in path.name
    }


def resume(run: Path, config: Config, allow_changes: bool = False) -> Path | None:
    config = config.model_copy(update={"train": config.train.model_copy(update={"trackers": []})})
    now = origin(config, open_dataset(config.data), None)
    return check_resumable(run, config, now, allow_changes=allow_changes)


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def looped(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.name)


def torn(path: Path) -> None:
    for file in path.rglob("state.json"):
        file.write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints: holds no checkpoint"),
        (lambda run: emptied(run / "checkpoints"), "checkpoints: holds no checkpoint"),
        (lambda run: looped(run / "checkpoints"), "checkpoints: is a symbolic link"),
        (lambda run: torn(run / "checkpoints"), "checkpoints/000004: damaged, state.json"),
        (lambda run: (run / "lora").rename(run / "mine") and (run / "lora").symlink_to("mine"), "lora: is a symbolic"),
        (lambda run: (run / "samples").touch(), "samples: is not a folder"),
        (lambda run: (run / ".lock").unlink(missing_ok=True) or (run / ".lock").mkdir(), ".lock: is not a file"),
        (lambda run: (run / "starts.jsonl").write_text("x\n{}\n"), "starts.jsonl:1: not a JSON object"),
    ],
)
def test_a_run_that_is_not_whole_is_refused_and_stays_as_it_is(
    run: Path, make_config: Make, change: Callable[[Path], object], message: str
) -> None:
    change(run)
    before = content(run)
    with pytest.raises((CheckpointError, ConfigError, RecordError), match=message):
        resume(run, make_config())
    assert content(run) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(run: Path, make_config: Make) -> None:
    emptied(run / "checkpoints")
    shutil.rmtree(run / "lora")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    assert resume(run, make_config()) is None


def test_changed_settings_are_shown_and_need_consent_unless_harmless(
    run: Path, make_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    changed = make_config(sampler="cps", iterations=9, learning_rate=0.5)
    with pytest.raises(ConfigError) as refused:
        resume(run, changed)
    message = str(refused.value)
    assert "changed since checkpoint 000004: rollout.sampler: dance, now cps; train.learning_rate: 0.001" in message
    assert "--allow-changes" in message and "iterations" not in message and "\n" not in message
    newest = resume(run, changed, allow_changes=True)
    assert newest is not None and newest.name == "000004"
    assert "rollout.sampler: dance, now cps" in caplog.text and "train.iterations: 4, now 9" in caplog.text
    caplog.clear()
    assert resume(run, make_config(iterations=9)) == newest
    assert "changed since checkpoint 000004: train.iterations: 4, now 9" in caplog.text
    caplog.clear()
    assert resume(run, make_config()) == newest and not caplog.text


def test_a_run_continues_with_changes_that_were_accepted(run: Path, make_config: Make, policy: Policy) -> None:
    changed = make_config(iterations=5, learning_rate=1e-4)
    trainer = make_trainer(changed, run, policy=policy)
    with pytest.raises(ConfigError, match="learning_rate"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=True, allow_changes=True)
    assert [record["iteration"] for record in metrics_of(run)] == [1, 2, 3, 4, 5]
    assert resume(run, changed) is not None


def test_more_iterations_change_the_training_where_a_schedule_follows_them(
    run: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for section, setting in (("train", {"schedule": "cosine"}), ("method", {"gamma_last": 0.0})):
        config = make_config()
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=setting)})
        newest = resume(run, config, allow_changes=True)
        assert newest is not None
        longer = config.model_copy(update={"train": config.train.model_copy(update={"iterations": 9})})
        origins = [origin(one, open_dataset(one.data), None) for one in (config, longer)]
        monkeypatch.setattr(resuming, "origin_of", {newest: origins[0]}.__getitem__)
        assert changes(newest, origins[1]) == ([], ["train.iterations: 4, now 9"])
        monkeypatch.undo()


def pairs_file(folder: Path, *prompts: str) -> DataConfig:
    Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(folder / "a.png")
    rows = ({"prompt": prompt, "references": ["a.png"], "key": prompt[:3]} for prompt in prompts)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(folder / "pairs.jsonl"))


def test_other_data_are_noticed_by_number_order_and_content(tmp_path: Path) -> None:
    first = fingerprint(open_dataset(pairs_file(tmp_path, "one cat", "two cats", "3rd cat")))
    assert difference(first, first) is None
    for prompts, found in (
        (("one cat", "two cats"), "3 pairs, now 2"),
        (("two cats", "one cat", "3rd cat"), "another order"),
        (("one cat", "two cats", "3rd dog"), "other prompts"),
    ):
        assert found in str(difference(first, fingerprint(open_dataset(pairs_file(tmp_path, *prompts)))))
    config = pairs_file(tmp_path, "one cat", "two cats", "3rd cat")
    Image.new("RGB", (90, 70), "red").save(tmp_path / "a.png")
    assert "other prompts, columns or files" in str(difference(first, fingerprint(open_dataset(config))))


def test_a_line_removed_from_the_data_is_noticed_and_a_moved_file_is_not(
    run: Path, make_config: Make, tmp_path: Path
) -> None:
    config = make_config().model_copy(update={"data": pairs_file(tmp_path, "one cat", "two cats")})
    newest = resume(run, config, allow_changes=True)
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    state["origin"] = origin(config, open_dataset(config.data), None)
    (newest / "state.json").write_text(json.dumps(state))
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = hashlib.sha256((newest / "state.json").read_bytes()).hexdigest()
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert resume(run, config) == newest
    (tmp_path / "moved").mkdir()
    moved = config.model_copy(update={"data": pairs_file(tmp_path / "moved", "one cat", "two cats")})
    assert resume(run, moved) == newest
    pairs_file(tmp_path, "one cat")
    with pytest.raises(ConfigError, match="data: 2 pairs, now 1"):
        resume(run, config)


def test_an_evaluation_with_a_missing_or_damaged_image_or_other_data_is_made_again(
    make_config: Make, policy: Policy, tmp_path: Path
) -> None:
    config = make_config(iterations=1, updates=1)
    held_out = open_dataset(config.evaluation.data)
    make_trainer(config, tmp_path, policy=policy, held_out=held_out).train()
    base = tmp_path / "evaluation" / "base"
    assert read_evaluation(base, config.evaluation, held_out) is not None
    image = base / "00001-0.png"
    before = image.read_bytes()
    for damage in (image.unlink, lambda: image.write_bytes(b""), lambda: image.write_bytes(before[:-30])):
        damage()
        assert read_evaluation(base, config.evaluation, held_out) is None
        assert read_evaluation(base, config.evaluation) is not None, "its scores are still known"
    make_trainer(config, tmp_path, policy=policy, held_out=held_out).train(resume_from_checkpoint=True)
    assert image.read_bytes() == before
    fewer = open_dataset(config.evaluation.data.model_copy(update={"size": 3}))
    assert read_evaluation(base, config.evaluation, fewer) is None


def test_records_that_are_missing_are_reported(
    run: Path, make_config: Make, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([lines[0], lines[0], lines[3]]))
    with caplog.at_level(logging.WARNING):
        make_trainer(make_config(), run, policy=policy).train(resume_from_checkpoint=True)
    assert "metrics.jsonl: iterations 1 to 4 are not there once each" in caplog.text


def test_no_run_begins_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for place in ("file/run", "dangling", "loop", "loop/run"):
        with pytest.raises(ConfigError, match="no folder can be made there"):
            check_unused(tmp_path / place)
    check_unused(tmp_path / "new" / "run")
