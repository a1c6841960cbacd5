"""What a study keeps of each run: one line of results.jsonl, enough for every table and curve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import base_config
from customized_grpo.evaluation import read_evaluation
from customized_grpo.utils.records import append_record, read_records
from experiments.study.plan import StudyRun

RESULTS = "results.jsonl"
Curve = list[tuple[int, float]]
_LOGGED = ("share/conflicted", "share/both_positive", "share/both_negative", "identity/mean", "prompt/mean", "kl")


@dataclass(frozen=True)
class Result:
    """A finished run: mean scores of the evaluation before and after, and what happened in between.

    `curves` has the evaluation's scores (by their names) over the iterations at which they were taken, 0 being
    the base; `logged` the means over all iterations of what the log says of the groups. `settings` is the whole
    configuration.
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
        """Of a score over the base, on its own scale."""
        return self.tuned[name] - self.base[name]

    def gain(self, name: str) -> float:
        """Change of a score over the base in per cent."""
        return 100 * self.change(name) / abs(self.base[name])


def collect(run: StudyRun, folder: Path) -> Result:
    """The result of a finished run's folder. Raises ConfigError where it is not finished."""
    base = read_evaluation(folder / "evaluation/base", run.config.evaluation)
    tuned = read_evaluation(folder / "evaluation/tuned", run.config.evaluation)
    records = read_records(folder / "metrics.jsonl")
    if base is None or tuned is None or len(records) < run.config.train.iterations:
        raise ConfigError(f"{folder}: not finished; run the study again")
    curves: dict[str, Curve] = {name: [(0, mean)] for name, mean in base.means.items()}
    for record in records:
        for name, curve in curves.items():
            if f"evaluation/{name}/mean" in record:
                curve.append((record["iteration"], record[f"evaluation/{name}/mean"]))
    logged = {key: sum(r[key] for r in records) / len(records) for key in _LOGGED if key in records[0]}
    seconds = sum(record["seconds/total"] for record in records)
    return Result(
        run.row, run.seed, run.config.model_dump(mode="json"), base.means, tuned.means, curves, logged, seconds
    )


def append_result(out: Path, result: Result) -> None:
    append_record(out / RESULTS, asdict(result))


def read_results(out: Path) -> list[Result]:
    """All results in a study's folder; none where there is no file yet."""
    if not (out / RESULTS).exists():
        return []
    results = []
    for number, record in enumerate(read_records(out / RESULTS), start=1):
        try:
            record["curves"] = {name: [(int(i), float(v)) for i, v in c] for name, c in record["curves"].items()}
            results.append(Result(**record))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ConfigError(f"{out / RESULTS}:{number}: not a result of this version; remove the line") from error
    return results


def finished(runs: list[StudyRun], results: list[Result], out: Path) -> set[tuple[str, int]]:
    """(row, seed) of the runs that need not be done again. Raises ConfigError where a result is of other settings."""
    planned = {(run.row, run.seed): run.config for run in runs}
    done = set()
    for result in results:
        key = (result.row, result.seed)
        if key in planned:
            other = difference(result.settings, planned[key])
            if other is not None:
                raise ConfigError(
                    f"{out / RESULTS}: {json.dumps(result.row)}, seed {result.seed}, was run with another {other}; "
                    "remove its line and folder, or give another --out"
                )
            done.add(key)
    return done


def difference(settings: Mapping[str, Any], config: Config) -> str | None:
    """The first dotted key in which kept settings are not those of `config`, or None.

    A key that the kept ones do not have is newer than they are: it agrees where it stands at its default.
    """
    default = base_config(config.policy)
    return _difference(settings, config.model_dump(mode="json"), default.model_dump(mode="json"), ())


def _difference(kept: Any, now: Any, default: Any, place: tuple[str, ...]) -> str | None:
    if isinstance(kept, Mapping) and isinstance(now, Mapping):
        usual = default if isinstance(default, Mapping) else {}
        for key in [*now, *(key for key in kept if key not in now)]:
            here = (*place, key)
            if key not in kept and key in usual and now[key] == usual[key]:
                continue
            if key not in kept or key not in now:
                return ".".join(here)
            found = _difference(kept[key], now[key], usual.get(key), here)
            if found is not None:
                return found
        return None
    if isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        usuals = default if isinstance(default, list) and len(default) == len(now) else [None] * len(now)
        parts = enumerate(zip(kept, now, usuals, strict=True))
        found_parts = (_difference(k, n, d, (*place, str(i))) for i, (k, n, d) in parts)
        return next((found for found in found_parts if found is not None), None)
    return None if kept == now else ".".join(place)
