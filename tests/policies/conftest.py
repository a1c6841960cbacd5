from __future__ import annotations

from pathlib import Path

import pytest
import tiny

# Its assertions are to be explained as those of the tests are.
pytest.register_assert_rewrite("proofs")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FluxKontextPipeline."""
    return tiny.save_flux_kontext(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def dynamic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, its noise levels shifted by the size of the picture."""
    return tiny.save_flux_kontext(tmp_path_factory.mktemp("dynamic"), dynamic_shifting=True)
