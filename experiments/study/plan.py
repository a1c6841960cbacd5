"""Rows of settings that a study compares, each over several seeds, read from one YAML file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.config.reading import read_section
from customized_grpo.config.section import Section
from customized_grpo.utils.hub import EMBEDDED

Settings = dict[str, Any]
"""Dotted configuration keys and their values, as `--set` takes them."""


class RowConfig(Section):
    """One way of training."""

    set: Settings = Field({})
    seeds: int | None = Field(None, ge=1, description="Seeds 0, 1, ... of this row; default: those of the study.")


class StudyConfig(Section):
    """A study's YAML file."""

    title: str = "Comparison"
    config: Path | None = Field(
        None, description="YAML of the runs, relative to the study's folder; default: the embedded recipe."
    )
    set: Settings = Field({})
    seeds: int = Field(3, ge=1)
    rows: dict[str, RowConfig] = Field(min_length=1)
    ours: str = Field(description="Row that the others are compared with.")
    front: list[str] = Field([], description="Rows of static weights, joined in the plane in this order.")
    grid: list[str] = Field([], description="Rows whose images are shown side by side.")
    gradient_batches: int = Field(16, ge=0, description="Iterations to measure gradients over; 0 for none.")

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        for key, names in (("ours", [self.ours]), ("front", self.front), ("grid", self.grid)):
            for name in names:
                if name not in self.rows:
                    raise ValueError(f"{key}: no row is named {name!r}; rows are {', '.join(self.rows)}")
        slugs: dict[str, str] = {}
        for name in self.rows:
            other = slugs.setdefault(slug(name), name)
            if other != name:
                raise ValueError(f"rows: {other!r} and {name!r} would share the folder {slug(name)}; rename one")
        return self


@dataclass(frozen=True)
class StudyRun:
    """One row trained from one seed."""

    row: str
    seed: int
    config: Config

    @property
    def folder(self) -> str:
        """Folder of the run in that of the study."""
        return f"{slug(self.row)}/seed-{self.seed}"


def slug(name: str) -> str:
    """Return a row's name as that of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower().replace(":", " to ")).strip("-") or "row"


def load_study(path: Path) -> StudyConfig:
    """Read a study's YAML file. Raises ConfigError, one line for each problem."""
    study = read_section(path, StudyConfig)
    if study.config is None or study.config == Path(EMBEDDED):
        return study
    return study.model_copy(update={"config": path.parent / study.config})


def plan(study: StudyConfig) -> list[StudyRun]:
    """Return all runs, every row's first seed before any second one. Raises ConfigError if a row cannot be run."""
    runs, problems = [], []
    for seed in range(max(row.seeds or study.seeds for row in study.rows.values())):
        for name, row in study.rows.items():
            if seed < (row.seeds or study.seeds):
                settings = {**study.set, **row.set, "seed": seed}
                try:
                    config = load_config(study.config, [f"{key}={json.dumps(one)}" for key, one in settings.items()])
                except ConfigError as error:
                    problems += [f"row {name!r}: {line}" for line in error.problems]
                else:
                    runs.append(StudyRun(name, seed, config))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return runs
