"""What a study keeps of each run: one line of results.jsonl, enough for every table and curve."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from customized_grpo.config import ConfigError
from customized_grpo.evaluation import read_evaluation
from customized_grpo.records import append_record, read_records
from customized_grpo.study.plan import StudyRun

RESULTS = "results.jsonl"
Curve = list[tuple[int, float]]
_CURVES = ("share/conflicted", "share/both_positive", "share/both_negative", "identity/mean", "prompt/mean", "kl")


@dataclass(frozen=True)
class Result:
    """A finished run: mean scores of the evaluation before and after, and what happened in between.

    `curves` has the evaluation's scores (by their names) over the iterations at which they were taken, 0 being
    the base; `logged` the means over all iterations of what the log says of the groups.
    """

    row: str
    seed: int
    digest: str
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
    logged = {key: sum(r[key] for r in records) / len(records) for key in _CURVES if key in records[0]}
    seconds = sum(record["seconds/total"] for record in records)
    return Result(run.row, run.seed, run.digest, base.means, tuned.means, curves, logged, seconds)


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
    digests = {(run.row, run.seed): run.digest for run in runs}
    done = set()
    for result in results:
        key = (result.row, result.seed)
        if key in digests and digests[key] != result.digest:
            raise ConfigError(
                f"{out / RESULTS}: {json.dumps(result.row)}, seed {result.seed}, was run with other settings; "
                "remove its line and folder, or give another --out"
            )
        done.add(key)
    return done & digests.keys()
