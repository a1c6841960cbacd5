"""docs/recipes.md has a row for every recipe, as `python -m benchmarks.recipes` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.recipes import HEAD, RECIPES, licence_of, row
from customized_grpo.config.loading import load_config

FILES = sorted(RECIPES.glob("*.yaml"))
PAGE = (RECIPES.parent / "docs" / "recipes.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[str]]:
    """The cells of each row by the recipe's name."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| [`")]
    return {re.match(r"\| \[`([^`]+)`", line)[1]: line.strip("| ").split(" | ") for line in lines}  # type: ignore[index]


def test_every_recipe_has_a_row_with_its_model_and_licence() -> None:
    assert PAGE.startswith(HEAD)
    assert list(rows()) == [path.stem for path in FILES], "run: python -m benchmarks.recipes > docs/recipes.md"
    for path in FILES:
        config = load_config(path)
        assert rows()[path.stem][1:3] == [config.policy.path, licence_of(config)], path.stem


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FILES, ids=lambda path: path.stem)
def test_the_rows_are_those_of_the_present_plans(recipe: Path) -> None:
    assert "| " + " | ".join(row(recipe)) + " |" in PAGE.splitlines()
