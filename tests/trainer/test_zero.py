"""Two processes that share out AdamW's averages (DeepSpeed's ZeRO) learn what one process learns, and hand it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from launching import alike, begun, train_together
from running import run_training

from customized_grpo.config import Config, ConfigError
from customized_grpo.trainer.processes import start_processes

pytest.importorskip("deepspeed")

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def configs(make_config: Make, full: Config) -> dict[str, Config]:
    """Three groups over two processes, which have other numbers of micro-batches then; a KL term; all weights."""
    common = {"iterations": 4, "checkpoint_every": 2, "schedule": "constant", "batch_size": 2}
    return {
        "lora": make_config(**common),
        "kl": make_config(layout="spread", kl_weight=0.1, ema=0.5, **{**common, "iterations": 2}),
        "full": full,
    }


@pytest.fixture(scope="module")
def alone(configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for name, config in configs.items():
        run_training(config, folder / name)
    return folder


@pytest.fixture(scope="module")
def shared(configs: dict[str, Config], alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left by themselves, and where they went on from a checkpoint of one."""
    folder = tmp_path_factory.mktemp("shared")
    train_together(folder, "zero2.yaml", configs, taken_over=alone / "lora")
    return folder


@pytest.mark.parametrize("name", ["lora", "kl", "full"])
def test_parts_learn_what_the_whole_learns(alone: Path, shared: Path, name: str) -> None:
    alike(alone / name, shared / name, kl=name != "lora", all_weights=name == "full")


def test_parts_continue_where_the_whole_stopped(alone: Path, shared: Path) -> None:
    alike(alone / "lora", shared / "taken over")


def test_the_whole_continues_where_parts_stopped(
    configs: dict[str, Config], alone: Path, shared: Path, tmp_path: Path
) -> None:
    begun(shared / "lora", tmp_path)
    run_training(configs["lora"], tmp_path)
    alike(alone / "lora", tmp_path)


def test_no_pickle_is_left(shared: Path) -> None:
    files = {path for path in shared.rglob("*") if path.is_file() and not path.name.startswith(".lock")}
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".yaml"}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("3", "ZeRO of stage 3 is not supported; set zero_stage to 1 or 2, or launch .*fsdp2"),
        ("0", "ZeRO of stage 0"),
        ("2", r"train\.batch_size: auto does not go with DeepSpeed; give a number"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, message: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(ConfigError, match=message):
        start_processes(make_config(batch_size="auto" if stage == "2" else 4))
