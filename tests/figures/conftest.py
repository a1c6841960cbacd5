"""What the tests of figures share."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, in their order."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(self: Figure, *args: object, **options: object) -> None:
        savefig(self, *args, **options)  # type: ignore[arg-type]
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
