"""Time one training iteration against other settings and against the machine's peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.iteration.growth import growth
from benchmarks.iteration.iteration import OURS, RELEASED, Shape, Stage, measure, runs_of
from benchmarks.iteration.peak import matmul_peak
from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Pair
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.order import pairs_of_iteration
from customized_grpo.trainer.profiling import STAGES
from customized_grpo.utils.machine import hardware
from customized_grpo.utils.records import write_json

_WHOLE = "iteration"
Stages = Mapping[str, Stage]


def bench(
    config: Config,
    rival: Config | None,
    out: Path,
    console: Console,
    *,
    repeats: int,
    growing: bool,
    alone: bool = False,
) -> None:
    """Measure an iteration of `config`, print the tables, and leave bench.json in the folder `out`.

    Whole groups are measured against one image at a time (not where `alone`), and against whole groups under the
    settings `rival`. `growing`: also how time and memory grow with the work, as growth.md and growth.png.

    Raises:
        ConfigError, ModelError, RewardError, DataError: a part cannot be opened.
    """
    pairs = _first_pairs(config)
    contenders, device = _measured(config, (OURS,) if alone else (OURS, RELEASED), repeats, console)
    precisions = dict.fromkeys(contenders, config.policy.dtype)
    if rival is not None:
        compared, _ = _measured(rival, (OURS,), repeats, console)
        contenders["the settings compared"] = compared[OURS.name]
        precisions["the settings compared"] = rival.policy.dtype
    ours = contenders[OURS.name]
    peaks = {str(dtype).removeprefix("torch."): matmul_peak(device, dtype) for dtype in _dtypes(precisions.values())}
    machine = hardware(device)
    images = len(pairs) * config.rollout.group_size
    told = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
    console.print(f"{machine['device']}, {machine['CPU threads']} CPU threads; matrix products in GFLOP/s: {told}")
    for name, stages in contenders.items():
        console.print(_table(name, stages, images, precisions[name], peaks[precisions[name]]))
        console.print(_told(stages, images), highlight=False)
    lines = [f"{OURS.name}: {_ratios(stages, ours)} as fast as {name}" for name, stages in contenders.items()][1:]
    for line in lines:
        console.print(line, highlight=False)
    write_json(
        out / "bench.json",
        {
            "machine": machine,
            "peak flops": peaks,
            "precisions": precisions,
            "images": images,
            "stages": {
                name: {stage: asdict(one) for stage, one in {**stages, _WHOLE: _whole(stages)}.items()}
                for name, stages in contenders.items()
            },
        },
    )
    if growing:
        growth(config, pairs, out, console, repeats)
    console.print(f"look at {out}/{'growth.png, growth.md, ' if growing else ''}bench.json")


def _dtypes(precisions: Iterable[str]) -> list[torch.dtype]:
    """float32, bfloat16, and what else is used."""
    return [getattr(torch, name) for name in dict.fromkeys(["float32", "bfloat16", *precisions])]


def _measured(
    config: Config, shapes: Sequence[Shape], repeats: int, console: Console
) -> tuple[dict[str, Stages], torch.device]:
    policy = build_policy(config.policy)
    rewards = reward_terms(config.rewards, policy.device)
    pairs = _first_pairs(config)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("iterations", total=runs_of(len(shapes), repeats))
        found = measure(config, policy, rewards, pairs, shapes, repeats, lambda: progress.advance(task))
    return {shape.name: found[shape.name] for shape in shapes}, policy.device


def _first_pairs(config: Config) -> list[Pair]:
    """Those of a training's first iteration."""
    dataset = open_dataset(config.data)
    return [dataset[index] for index in pairs_of_iteration(len(dataset), config.rollout.pairs, config.seed, 0)]


def _whole(stages: Stages) -> Stage:
    """The iteration: the sum of its stages, and the highest of their peaks."""
    each = [stages[stage] for stage in STAGES]
    highest = max(each, key=lambda stage: stage.held_bytes + stage.peak_bytes)
    return Stage(sum(s.seconds for s in each), sum(s.flops for s in each), highest.peak_bytes, highest.held_bytes)


def _told(stages: Stages, images: int) -> str:
    """Seconds of one image, drawn and trained, and the memory where it is known."""
    drawn, trained = (stages[stage].seconds / images for stage in ("sample", "update"))
    whole = _whole(stages)
    memory = f"; {(whole.held_bytes + whole.peak_bytes) / 1e9:.1f} GB at the highest" if whole.held_bytes else ""
    return f"{drawn:.3f} s an image drawn, {trained:.3f} s an image trained{memory}"


def _table(name: str, stages: Stages, images: int, dtype: str, peak: float) -> Table:
    table = Table("stage", "seconds", "images/s", "GFLOP", "GFLOP/s", f"% of {dtype} peak", "peak MB", title=name)
    for stage, one in {**stages, _WHOLE: _whole(stages)}.items():
        rate = one.flops / max(one.seconds, 1e-9)
        table.add_row(
            stage,
            f"{one.seconds:.3f}",
            f"{images / max(one.seconds, 1e-9):.1f}",
            f"{one.flops / 1e9:.1f}",
            f"{rate / 1e9:.1f}",
            f"{100 * rate / peak:.0f}",
            f"{one.peak_bytes / 1e6:.0f}",
            style="bold" if stage == _WHOLE else None,
        )
    return table


def _ratios(slower: Stages, ours: Stages) -> str:
    """How many times as fast ours is: in all, and stage by stage."""

    def ratio(one: Stage, other: Stage) -> str:
        return f"{one.seconds / max(other.seconds, 1e-9):.1f}x"

    each = ", ".join(f"{stage} {ratio(slower[stage], ours[stage])}" for stage in STAGES)
    return f"{ratio(_whole(slower), _whole(ours))} ({each})"
