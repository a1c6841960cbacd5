"""Results of a study: one line of results.jsonl for each run, enough for every table and curve."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import base_config
from customized_grpo.evaluation import read_evaluation
from customized_grpo.utils.records import read_records
from experiments.study.plan import StudyRun

RESULTS = "results.jsonl"
Curve = list[tuple[int, float]]
_LOGGED = ("share/conflicted", "share/both_positive", "share/both_negative", "identity/mean", "prompt/mean", "kl")


class Result(BaseModel, frozen=True, extra="forbid"):
    """A finished run.

    Args:
        row: Row of the study.
        seed: Seed of the run.
        settings: Whole configuration.
        base: Mean scores of the evaluation before training.
        tuned: Mean scores of the evaluation after training.
        curves: Scores by name over the iterations at which they were taken; iteration 0 is the base.
        logged: Means over all iterations of some logged metrics.
        seconds: Training time.
    """

    row: str
    seed: int
    settings: dict[str, Any]
    base: dict[str, float]
    tuned: dict[str, float]
    curves: dict[str, Curve]
    logged: dict[str, float]
    seconds: float

    def change(self, name: str) -> float:
        """Return the change of a score over the base, on its own scale."""
        return self.tuned[name] - self.base[name]

    def gain(self, name: str) -> float:
        """Return the change of a score over the base in per cent."""
        return 100 * self.change(name) / abs(self.base[name])


def collect(run: StudyRun, folder: Path) -> Result:
    """Read the result of a finished run's folder. Raises ConfigError if it is not finished."""
    base = read_evaluation(folder / "evaluation/base", run.config.evaluation)
    tuned = read_evaluation(folder / "evaluation/tuned", run.config.evaluation)
    records = read_records(folder / "metrics.jsonl")
    if base is None or tuned is None or len(records) < run.config.train.iterations:
        raise ConfigError(f"{folder}: not finished; run the study again")
    curves: dict[str, Curve] = {}
    for name, mean in base.means.items():
        key = f"evaluation/{name}/mean"
        curves[name] = [(0, mean), *((r["iteration"], r[key]) for r in records if key in r)]
    logged = {key: sum(r[key] for r in records) / len(records) for key in _LOGGED if key in records[0]}
    settings = run.config.model_dump(mode="json")
    return Result(
        row=run.row, seed=run.seed, settings=settings, base=base.means, tuned=tuned.means, curves=curves, logged=logged,
        seconds=sum(record["seconds/total"] for record in records),
    )  # fmt: skip


def read_results(out: Path) -> list[Result]:
    """Read all results in a study's folder; none if there is no file yet."""
    if not (out / RESULTS).exists():
        return []
    results = []
    for number, record in enumerate(read_records(out / RESULTS), start=1):
        try:
            results.append(Result.model_validate(record))
        except ValidationError as error:
            raise ConfigError(f"{out / RESULTS}:{number}: not a result of this version; remove the line") from error
    return results


def finished(runs: Iterable[StudyRun], results: Iterable[Result], out: Path) -> set[tuple[str, int]]:
    """Return (row, seed) of the finished runs. Raises ConfigError for a result with other settings."""
    planned = {(run.row, run.seed): run.config for run in runs}
    done = set()
    for result in results:
        if (key := (result.row, result.seed)) in planned:
            other = difference(result.settings, planned[key])
            if other is not None:
                raise ConfigError(
                    f"{out / RESULTS}: {json.dumps(result.row)}, seed {result.seed}, was run with another {other}; "
                    "remove its line and folder, or give another --out"
                )
            done.add(key)
    return done


def difference(settings: Mapping[str, Any], config: Config) -> str | None:
    """Return the first dotted key in which stored settings differ from those of `config`, or None.

    A key that the stored settings lack is newer than they are; it agrees if it has its default value.
    """
    usual = base_config(config.policy)
    stored, now, default = map(_flat, (settings, config.model_dump(mode="json"), usual.model_dump(mode="json")))
    for key, value in now.items():
        if key in stored:
            if stored[key] != value:
                return key
        elif not (key in default and default[key] == value):
            return key
    return next((key for key in stored if key not in now), None)


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by their dotted keys."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {place: value}
    parts = (_flat(one, f"{place}.{key}" if place else str(key)) for key, one in value.items())
    return {key: one for part in parts for key, one in part.items()}
