"""Finished runs of tiny random pipelines with random LoRAs, evaluated and saved like those of a training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_flux2
from embedded import embedded
from PIL import Image
from proofs import tune

from customized_grpo.config import Config, DataConfig, EvaluationConfig, LoraConfig, PolicyConfig, TrainConfig
from customized_grpo.config.loading import save_config
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import evaluate, evaluation_grid
from customized_grpo.policies import build_policy
from customized_grpo.reporting.snapshots import keep_samples
from customized_grpo.trainer.parts import build_scorers

#: Functions that save a tiny pipeline to a folder, by `policy.kind`.
PIPELINES = {
    "flux-kontext": tiny.save_flux_kontext,
    "flux2": lambda folder: tiny_flux2.save(tiny_flux2.klein(), folder),
    "uno": tiny.save_flux,
}


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that makes such a run from a folder with a pipeline; keywords are settings of its policy."""

    def make(pipeline: Path, **policy_settings: object) -> Path:
        folder = tmp_path_factory.mktemp("private")
        common = {"height": 32, "width": 24, "reference_sizes": [(24, 16)], "lora": LoraConfig(rank=4, alpha=6)}
        settings = {"path": str(pipeline), "device": "cpu", "max_sequence_length": 64, **common, **policy_settings}
        held_out = embedded(DataConfig, split="held-out", size=2, seed=1)
        config = embedded(
            Config,
            policy=embedded(PolicyConfig, **settings),
            data=embedded(DataConfig, root=folder / "secret-folder"),
            evaluation=embedded(EvaluationConfig, data=held_out, steps=2),
            train=embedded(TrainConfig, iterations=3),
        )
        run = folder / "run"
        run.mkdir()
        save_config(config, run / "config.yaml")
        policy, pairs = build_policy(config.policy), open_dataset(held_out)
        rewards = build_scorers(config, policy.device)
        drawn = {"base": evaluate(policy, pairs, rewards, config.evaluation, run / "evaluation" / "base", batch_size=2)}
        tune(policy, 0.1 if config.policy.lora is not None else 0.02)
        drawn["tuned"] = evaluate(policy, pairs, rewards, config.evaluation, run / "evaluation" / "tuned", batch_size=2)
        keep_samples(run, 3, pairs, 1, drawn["tuned"])
        evaluation_grid(run / "before-after.png", pairs, 1, drawn)
        policy.save(run / "lora")
        return run

    return make


@pytest.fixture(scope="session")
def finished(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a LoRA for FLUX.1 Kontext. Tests must not change it."""
    return make_run(tiny.save_flux_kontext(tmp_path_factory.mktemp("base")))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def photo() -> Image.Image:
    return Image.effect_noise((24, 16), 90).convert("RGB").rotate(90, expand=True)
