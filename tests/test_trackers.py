"""Records of a training in trackers, read back from their files."""

from __future__ import annotations

import importlib
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import SHORT

from customized_grpo.cli.run import train_run
from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.trainer import trackers
from customized_grpo.utils.records import read_records

TOKEN = "hf_" + "a" * 30


def trained(run: Path, *names: str) -> Config:
    """A short run of the embedded model with these trackers; one option holds a secret."""
    options = (
        f"{{kind: dino, role: identity, name: extra, path: embedded/monitor-identity, options: {{revision: {TOKEN}}}}}"
    )
    config = load_config(None, [*SHORT, f"train.trackers=[{', '.join(names)}]", f"evaluation.monitors=[{options}]"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": run.parent})})
    train_run(config, run, Console(file=io.StringIO()))
    return config


@pytest.mark.usefixtures("quick_figures")
def test_tensorboard_has_the_numbers_the_configuration_and_the_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(run, "tensorboard")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    records = read_records(run / "metrics.jsonl")
    assert len(records) == 2
    assert set(events.Tags()["scalars"]) == {name for record in records for name in record} - {"iteration"}
    for name in ("identity/mean", "kl", "learning_rate"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx([record[name] for record in records], rel=1e-6)
    (image,) = events.Images("samples")
    assert image.step == 2
    files = io.BytesIO(image.encoded_image_string), run / "samples" / "iteration-000002.png"
    shown, kept = (np.asarray(Image.open(file).convert("RGB")) for file in files)
    assert np.array_equal(shown, kept)
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "learning_rate" in text and "<secret>" in text and "<local path>" in text
    for path in (run / "tensorboard").rglob("*tfevents*"):
        assert TOKEN.encode() not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_has_the_numbers_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    trained(run, "wandb", "tensorboard")
    importlib.import_module("wandb").teardown()  # its process writes the file, and may do so after the run's end
    (log,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"identity/mean" in content and b"train.learning_rate" in content
    assert TOKEN.encode() not in content and str(tmp_path / "r").encode() not in content.replace(str(run).encode(), b"")
    assert list((run / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trained(tmp_path / "run", "trackio")
    files = [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    assert any(b"identity/mean" in path.read_bytes() for path in files), files


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_one_line_before_anything_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda module: None if module == name else found(module))
    config = load_config(None, [f"train.trackers=[tensorboard, {name}]", "policy.path=./nowhere"])
    with pytest.raises(ConfigError, match=rf"^train\.trackers: {name} is not installed; pip install {name}, or"):
        train_run(config, tmp_path / "run", Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()
