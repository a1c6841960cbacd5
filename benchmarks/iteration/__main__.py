"""Command line of the iteration benchmark, its tables and bench.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.iteration.iteration import OURS, RELEASED, Shape, Stage, measure
from benchmarks.iteration.peak import matmul_peak
from customized_grpo.cli.app import ConfigOption, SetOption, one_line_errors, quiet
from customized_grpo.config import Config
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.order import pairs_of_iteration
from customized_grpo.trainer.profiling import STAGES
from customized_grpo.utils.machine import hardware
from customized_grpo.utils.records import write_json
from customized_grpo.utils.terminal import plain_console

_COMPARED = "the settings compared"
Stages = Mapping[str, Stage]


def main(
    config: ConfigOption = None,
    set_: SetOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting to compare with, as [b]policy.dtype=bfloat16[/b]; may be given again.", metavar="KEY=VALUE"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed iterations, of which the median is reported.")] = 3,
    alone: Annotated[bool, typer.Option("--alone", help="Skip the slow baseline, one image at a time.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for bench.json.")] = Path("runs/bench"),
) -> None:
    """Benchmark one training iteration against one image at a time, other settings, and the machine's peak.

    [dim]python -m benchmarks.iteration --against policy.dtype=bfloat16[/dim]
    """
    quiet()
    with one_line_errors():
        compared = load_config(config, [*(set_ or []), *against]) if against else None
        bench(load_config(config, set_ or []), compared, out, plain_console(), repeats=repeats, alone=alone)


def bench(
    config: Config, compared: Config | None, out: Path, console: Console, *, repeats: int, alone: bool = False
) -> None:
    """Measure an iteration of `config`, print the tables, and write `out`/bench.json.

    Args:
        config: Settings to measure.
        compared: Settings to compare with, measured in whole groups only.
        out: Folder of bench.json.
        console: Console to print to.
        repeats: Timed iterations.
        alone: Skip the baseline of one image at a time.

    Raises:
        ConfigError, ModelError, RewardError, DataError: A part cannot be opened.
    """
    found, device = _measured(config, (OURS,) if alone else (OURS, RELEASED), repeats, console)
    precisions = dict.fromkeys(found, config.policy.dtype)
    if compared is not None:
        found[_COMPARED] = _measured(compared, (OURS,), repeats, console)[0][OURS.name]
        precisions[_COMPARED] = compared.policy.dtype
    peaks = {
        name: matmul_peak(device, getattr(torch, name))
        for name in dict.fromkeys(["float32", "bfloat16", *precisions.values()])
    }
    machine, images = hardware(device), config.rollout.pairs * config.rollout.group_size
    rates = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
    console.print(f"{machine['device']}, {machine['CPU threads']} CPU threads; matrix products in GFLOP/s: {rates}")
    for name, stages in found.items():
        console.print(_table(name, stages, images, precisions[name], peaks[precisions[name]]))
        sampled, trained = (stages[stage].seconds / images for stage in ("sample", "update"))
        whole = stages["iteration"]
        memory = f"; peak memory {(whole.held_bytes + whole.peak_bytes) / 1e9:.1f} GB" if whole.held_bytes else ""
        console.print(f"{sampled:.3f} s per sampled image, {trained:.3f} s per trained image{memory}", highlight=False)
    ours = found[OURS.name]
    for name, stages in list(found.items())[1:]:
        ratios = {stage: f"{one.seconds / max(ours[stage].seconds, 1e-9):.1f}x" for stage, one in stages.items()}
        each = ", ".join(f"{stage} {ratios[stage]}" for stage in STAGES)
        console.print(f"speed-up of {OURS.name} over {name}: {ratios['iteration']} ({each})", highlight=False)
    record = {
        "machine": machine,
        "peak flops": peaks,
        "precisions": precisions,
        "images": images,
        "stages": {name: {stage: asdict(one) for stage, one in stages.items()} for name, stages in found.items()},
    }
    write_json(out / "bench.json", record)
    console.print(f"wrote {out}/bench.json")


def _measured(
    config: Config, shapes: tuple[Shape, ...], repeats: int, console: Console
) -> tuple[dict[str, Stages], torch.device]:
    """Return the stages of each shape, "iteration" for their sum, and the policy's device."""
    policy, dataset = build_policy(config.policy), open_dataset(config.data)
    rewards = reward_terms(config.rewards, policy.device)
    pairs = [dataset[index] for index in pairs_of_iteration(len(dataset), config.rollout.pairs, config.seed, 0)]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("iterations", total=len(shapes) * (3 + repeats))
        found = measure(config, policy, rewards, pairs, shapes, repeats, lambda: progress.advance(task))
    whole = {}
    for name, stages in found.items():
        highest = max(stages.values(), key=lambda stage: stage.held_bytes + stage.peak_bytes)
        seconds, flops = (sum(getattr(one, key) for one in stages.values()) for key in ("seconds", "flops"))
        whole[name] = {**stages, "iteration": Stage(seconds, flops, highest.peak_bytes, highest.held_bytes)}
    return dict(whole), policy.device


def _table(name: str, stages: Stages, images: int, dtype: str, peak: float) -> Table:
    table = Table("stage", "seconds", "images/s", "GFLOP", "GFLOP/s", f"% of {dtype} peak", "peak MB", title=name)
    for stage, one in stages.items():
        seconds = max(one.seconds, 1e-9)
        rate = one.flops / seconds
        cells = (f"{seconds:.3f}", f"{images / seconds:.1f}", f"{one.flops / 1e9:.1f}", f"{rate / 1e9:.1f}")
        share, memory = f"{100 * rate / peak:.0f}", f"{one.peak_bytes / 1e6:.0f}"
        table.add_row(stage, *cells, share, memory, style="bold" if stage == "iteration" else None)
    return table


if __name__ == "__main__":
    typer.run(main)
