"""How an iteration's time and memory grow with group size, steps, resolution and references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.iteration.iteration import OURS, measure
from customized_grpo.config import Config
from customized_grpo.figures.style import PALETTE, drawing
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Pair, Policy
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.profiling import STAGES
from customized_grpo.utils.records import write_bytes

_FACTORS = (0.5, 1.0, 1.5, 2.0)
_REFERENCES = (1, 2, 3, 4)
_PIXELS = "side in pixels"


@dataclass(frozen=True)
class Point:
    """One measured iteration: along which axis, where on it, seconds and peak bytes."""

    axis: str
    at: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class _Work:
    axis: str
    at: float
    config: Config
    references: int


def growth(config: Config, pairs: Sequence[Pair], out: Path, console: Console, repeats: int) -> None:
    """growth.md and growth.png in the folder `out`: iterations of the first pair, one thing changed at a time.

    Memory is that of whole groups in one batch. Slopes are fitted to logarithms: 1 is proportional growth.
    """
    works = list(_works(config))
    points: list[Point] = []
    policies: dict[str, tuple[Policy, list[RewardTerm]]] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("growth", total=len(works))
        for work in works:
            key = work.config.policy.model_dump_json()
            if key not in policies:
                policy = build_policy(work.config.policy)
                policies = {key: (policy, reward_terms(work.config.rewards, policy.device))}
            policy, rewards = policies[key]
            first = pairs[0]
            many = replace(
                first,
                references=(first.references * work.references)[: work.references],
                masks=(first.masks * work.references)[: work.references],
            )
            stages = measure(work.config, policy, rewards, [many], [OURS], repeats, count=False)[OURS.name]
            seconds = sum(stages[stage].seconds for stage in STAGES)
            points.append(Point(work.axis, work.at, seconds, max(stages[stage].peak_bytes for stage in STAGES)))
            progress.advance(task)
    write_bytes(out / "growth.md", _table(points).encode())
    _plot(out / "growth.png", points)


def slope(points: Sequence[Point], what: str) -> float:
    """d log(`what`) / d log(at) over the points of one axis, `what` being seconds or peak_bytes; least squares."""
    at = np.log([point.at for point in points])
    values = np.log([float(getattr(point, what)) for point in points])
    return float(np.polyfit(at, values, 1)[0])


def by_axis(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {axis: [p for p in points if p.axis == axis] for axis in dict.fromkeys(p.axis for p in points)}


def _works(config: Config) -> Iterator[_Work]:
    """Whole groups of one pair in one batch, the policies that are alike next to each other."""
    rollout = config.rollout

    def changed(group: int = rollout.group_size, steps: int = rollout.steps, **policy: Any) -> Config:
        batch = {"batch_size": group}
        return config.model_copy(
            update={
                "policy": config.policy.model_copy(update=policy),
                "rollout": rollout.model_copy(
                    update={"group_size": group, "steps": steps, "pairs": 1, "window": None, **batch}
                ),
                "train": config.train.model_copy(update={"updates": 1, **batch}),
            }
        )

    for factor in _FACTORS:
        group = max(2, round(factor * rollout.group_size))
        yield _Work("images of a group", group, changed(group=group), 1)
    for factor in _FACTORS:
        steps = max(2, round(factor * rollout.steps))
        yield _Work("denoising steps", steps, changed(steps=steps), 1)
    for count in _REFERENCES:
        yield _Work("references", count, changed(), count)
    for factor in _FACTORS:
        side = max(16, round(factor * config.policy.height / 16) * 16)
        yield _Work(_PIXELS, side, changed(height=side, width=side), 1)


def _table(points: Sequence[Point]) -> str:
    lines = ["| what grows | at | seconds | peak MB | slope of time | slope of memory |", "|" + " --- |" * 6]
    for axis, found in by_axis(points).items():
        told = f"{slope(found, 'seconds'):.2f}", f"{slope(found, 'peak_bytes'):.2f}"
        for point in found:
            ends = told if point is found[-1] else ("", "")
            cells = (axis, f"{point.at:g}", f"{point.seconds:.2f}", f"{point.peak_bytes / 1e6:.0f}", *ends)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plot(path: Path, points: Sequence[Point]) -> None:
    axes_told = by_axis(points)
    with drawing(path, 9, 4, "What an iteration takes as the work grows") as figure:
        panels = figure.subplots(1, 2)
        for panel, what, unit, scale in (
            (panels[0], "seconds", "seconds an iteration", 1.0),
            (panels[1], "peak_bytes", "peak memory, MB", 1e-6),
        ):
            for colour, (axis, found) in zip(PALETTE, axes_told.items(), strict=False):
                relative = [point.at / found[0].at for point in found]
                values = [float(getattr(point, what)) * scale for point in found]
                label = f"{axis}, {found[0].at:g} to {found[-1].at:g}: slope {slope(found, what):.2f}"
                panel.plot(relative, values, "o-", color=colour, label=label)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}x")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.set_xlabel("how many times the least")
            panel.set_ylabel(unit)
            panel.legend(loc="upper left")
