"""Seconds of an iteration of each row: python -m experiments.study.seconds recipes/studies/objectives.yaml --out OUT"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from customized_grpo.cli.app import one_line_errors, quiet
from customized_grpo.config import Config
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.machine import hardware
from customized_grpo.utils.records import read_records, write_json
from experiments.study.plan import load_study, plan

SECONDS = "seconds.json"


def main(
    study: Annotated[Path, typer.Argument(help="YAML file of the study.", metavar="PLAN")],
    out: Annotated[Path, typer.Option(help="Folder of the study, whose report then draws curves over minutes.")],
    iterations: Annotated[int, typer.Option(min=2, help="Iterations per round; the first is not counted.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all rows.")] = 2,
) -> None:
    """Train each row for a few iterations in turn, without evaluations, and store the median of their seconds.

    The untuned model's images of `validation` do not count: it generates each once in a whole training.
    """
    quiet()
    with one_line_errors():
        configs = {run.row: run.config for run in plan(load_study(study)) if run.seed == 0}
        found: dict[str, list[float]] = {row: [] for row in configs}
        for _ in range(rounds):
            for row, config in configs.items():
                found[row] += _measure(config, iterations)
                print(f"{row}: {found[row][-1]:.2f} s", flush=True)
        seconds = {row: round(statistics.median(values), 3) for row, values in found.items()}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SECONDS, {"seconds": seconds, "hardware": hardware()})


def read_seconds(out: Path) -> dict[str, float]:
    """Return the seconds of an iteration by row; empty if they were not measured."""
    path = out / SECONDS
    return dict(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.exists() else {}


def _measure(config: Config, iterations: int) -> list[float]:
    """Return the seconds of each iteration but the first."""
    train = config.train.model_copy(update={"iterations": iterations, "trackers": []})
    # Each iteration generates the same images, which the untuned model generates in the first one.
    images = config.validation.model_copy(update={"images": config.validation.per_iteration})
    with TemporaryDirectory() as folder:
        args = config.model_copy(update={"train": train, "validation": images})
        CustomizedGRPOTrainer(args=args, output_dir=Path(folder) / "run").train()
        records = read_records(Path(folder) / "run" / "metrics.jsonl")
    return [record["seconds/total"] for record in records][1:]


if __name__ == "__main__":
    typer.run(main)
