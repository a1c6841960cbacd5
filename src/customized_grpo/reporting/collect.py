"""Read a run's folder for its report. Whatever an unfinished or older run lacks is empty here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.config import Config
from customized_grpo.config.loading import base_config
from customized_grpo.config.reading import flat
from customized_grpo.config.redaction import hide_secrets
from customized_grpo.evaluation import Evaluation, read_evaluation
from customized_grpo.reporting.snapshots import GroupChoice, Samples, read_groups, read_samples
from customized_grpo.trainer.folder import STARTS
from customized_grpo.utils.records import check_iterations, read_records
from customized_grpo.utils.terminal import finite

Records = Sequence[Mapping[str, Any]]
Series = list[tuple[int, float]]
"""(iteration, value) in the order of the iterations; all values are finite."""


@dataclass(frozen=True)
class Run:
    """One run, finished or not.

    `records` are those of metrics.jsonl, after one of iteration 0 with the base model's evaluation if there is one;
    `changes` are those of the function of that name, `starts` has versions and hardware, `tuned` is the newest
    evaluation; stored `samples` and `groups` are by their folder, and `notes` are sentences about what is missing.
    """

    folder: Path
    config: Config
    changes: list[tuple[str, str, str]]
    records: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    base: Evaluation | None
    tuned: Evaluation | None
    samples: dict[Path, Samples]
    groups: dict[Path, GroupChoice]
    notes: list[str]

    @property
    def iterations(self) -> int:
        """Number of finished iterations."""
        return int(self.records[-1]["iteration"]) if self.records else 0

    @property
    def finished(self) -> bool:
        """True if all iterations are done."""
        return self.iterations >= self.config.train.iterations


def collect(folder: Path, config: Config) -> Run:
    """Read the folder of a run. Raises RecordError if a complete line of its records is damaged."""
    records = _lines(folder / "metrics.jsonl")
    check_iterations(folder / "metrics.jsonl", records)
    records.sort(key=lambda record: int(record["iteration"]))
    done = records[-1]["iteration"] if records else 0
    base, tuned, other = _evaluations(folder / "evaluation", config)
    if base is not None:
        start = {f"evaluation/{name}/mean": mean for name, mean in base.means.items()}
        records = [{"iteration": 0, **start}, *records]
    return Run(
        folder,
        config,
        list(changes(config)),
        records,
        _lines(folder / STARTS),
        base,
        tuned,
        # A process that was killed may have stored images of an iteration that a resumed run repeats.
        {path: stored for path, stored in read_samples(folder).items() if stored.iteration <= done},
        {path: stored for path, stored in read_groups(folder).items() if stored.iteration <= done},
        list(_notes(config, done, base, tuned, other)),
    )


def changes(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default, value) of settings that differ from the defaults of the model, without secrets."""
    default = flat(base_config(config.policy).model_dump(mode="json"))
    mine = flat(hide_secrets(config.model_dump(mode="json")))
    for key in dict.fromkeys([*default, *mine]):
        before, after = (
            ("null" if values[key] is None else str(values[key])) if key in values else "absent"
            for values in (default, mine)
        )
        if before != after:
            yield key, before, after


def series(records: Records, key: str) -> Series:
    """Return the finite values of a metric."""
    return [(record["iteration"], float(record[key])) for record in records if finite(record.get(key))]


def in_steps(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the values, evenly spread, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_records(path) if path.exists() else []


def _evaluations(folder: Path, config: Config) -> tuple[Evaluation | None, Evaluation | None, bool]:
    """Return the base's and the tuned model's evaluation, and whether their settings are not those of the run."""
    base, tuned = (read_evaluation(folder / name, config.evaluation) for name in ("base", "tuned"))
    if base is not None and tuned is not None:
        return base, tuned, False
    other_base, other_tuned = (read_evaluation(folder / name, None) for name in ("base", "tuned"))
    if other_base is not None and other_tuned is not None and _shape(other_base) == _shape(other_tuned):
        return other_base, other_tuned, True
    return base, None, False


def _shape(evaluation: Evaluation) -> dict[str, int]:
    return {name: len(values) for name, values in evaluation.scores.items()}


def _notes(config: Config, done: int, base: Evaluation | None, tuned: Evaluation | None, other: bool) -> Iterator[str]:
    if done < config.train.iterations:
        yield f"This run is not finished: {done} of {config.train.iterations} iterations are done."
        if tuned is not None:
            yield "Tuned means the newest evaluation so far."
    if base is None:
        yield "The base model has not been evaluated yet."
    if tuned is None:
        yield "The tuned model has not been evaluated yet."
    if other:
        yield "The evaluation has other settings than those of the run."
