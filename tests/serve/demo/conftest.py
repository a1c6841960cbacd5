"""A run of the embedded model whose LoRA is random."""

from __future__ import annotations

from pathlib import Path

import pytest
from embedded import embedded, save_random_run

from customized_grpo.config import Config


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_run(tmp_path_factory.mktemp("demo") / "run", embedded(Config), 0.02)
