"""What a run's folder holds, read for its report. Whatever an unfinished or older run lacks is empty here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.config import Config
from customized_grpo.config.loading import base_config
from customized_grpo.config.redaction import hide_secrets
from customized_grpo.evaluation import Evaluation, read_evaluation
from customized_grpo.reporting.snapshots import GroupChoice, Samples, read_groups, read_samples
from customized_grpo.utils.machine import STARTS
from customized_grpo.utils.records import RecordError, read_records


@dataclass(frozen=True)
class Change:
    """A setting that differs from the default: its dotted key, and both values as text."""

    key: str
    default: str
    value: str


@dataclass(frozen=True)
class Run:
    """One run, as far as it has come.

    `records` are those of metrics.jsonl, by rising iteration, after one of iteration 0 with the base model's
    evaluation where there is one. `starts` say what each start ran with. `samples` and `groups` are kept
    pictures by their folder. `notes` say what a reader has to know of what is missing.
    """

    folder: Path
    config: Config
    changes: list[Change]
    records: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    base: Evaluation | None
    tuned: Evaluation | None
    samples: dict[Path, Samples]
    groups: dict[Path, GroupChoice]
    notes: list[str]

    @property
    def iterations(self) -> int:
        """How many are done."""
        return int(self.records[-1]["iteration"]) if self.records else 0

    @property
    def finished(self) -> bool:
        return self.iterations >= self.config.train.iterations


def collect(folder: Path, config: Config) -> Run:
    """Read the folder of a run with that configuration.

    Raises RecordError where a whole line of its records is damaged or holds no iteration.
    """
    records = _records(folder / "metrics.jsonl")
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
        # A process that was killed may have drawn pictures of an iteration that is to be done again.
        {at: kept for at, kept in read_samples(folder).items() if kept.iteration <= done},
        {at: kept for at, kept in read_groups(folder).items() if kept.iteration <= done},
        list(_notes(config, done, base, tuned, other)),
    )


def changes(config: Config) -> Iterator[Change]:
    """What differs from the defaults of the run's model, key by key."""
    default = _flat(base_config(config.policy).model_dump(mode="json"))
    mine = _flat(hide_secrets(config.model_dump(mode="json")))
    for key in dict.fromkeys([*default, *mine]):
        if default.get(key) != mine.get(key):
            yield Change(key, _shown(default, key), _shown(mine, key))


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{key}.{name}" if key else name).items()}
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return {k: v for i, part in enumerate(value) for k, v in _flat(part, f"{key}.{i}").items()}
    return {key: value}


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "not there"
    return "null" if values[key] is None else str(values[key])


def _records(path: Path) -> list[dict[str, Any]]:
    records = _lines(path)
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("iteration"), int):
            raise RecordError(f"{path}:{number}: iteration is missing or not a whole number; remove the line")
    return sorted(records, key=lambda record: int(record["iteration"]))


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_records(path) if path.exists() else []


def _evaluations(folder: Path, config: Config) -> tuple[Evaluation | None, Evaluation | None, bool]:
    """Base, tuned, and whether they were drawn with other settings than the run's, as `cgrpo evaluate` may."""
    base, tuned = (read_evaluation(folder / name, config.evaluation) for name in ("base", "tuned"))
    if base is not None and tuned is not None:
        return base, tuned, False
    others = [read_evaluation(folder / name, None) for name in ("base", "tuned")]
    comparable = all(one is not None for one in others) and len({_shape(one) for one in others if one}) == 1
    return (others[0], others[1], True) if comparable else (base, None, False)


def _shape(evaluation: Evaluation) -> tuple[tuple[str, int], ...]:
    return tuple((name, len(values)) for name, values in sorted(evaluation.scores.items()))


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
        yield "The evaluation was drawn with other settings than the run's own."


def in_steps(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
