"""A run of the embedded model whose LoRA is random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from embedded import embedded

from customized_grpo.config import Config
from customized_grpo.config.loading import save_config
from customized_grpo.policies import build_policy


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, config = tmp_path_factory.mktemp("demo") / "run", embedded(Config)
    run.mkdir()
    save_config(config, run / "config.yaml")
    policy = build_policy(config.policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    policy.save(run / "lora")
    return run
