"""`python -m tests.faults`: breaks runs on purpose, and prints what came of it as a table.

Every result is appended to a file of JSON lines as soon as it is known. Exit code 1 where any promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import kills, numerics, places, stops
from .bench import Bench
from .kills import Reference, Trial
from .sites import SITES
from .soak import soak

COMMANDS = 4  #: of the kills, those of processes that the interpreter started itself
DISKS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
RATES = (0.1, 10.0, 1e4)


@dataclass
class Row:
    """A line of the table: what was done, how often, what that came to, what went wrong."""

    part: str
    what: str
    times: int
    told: str
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    """Read the options, do all parts, show the table."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 120)
    chance = random.Random(options.seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cgrpo-faults-") as made, Bench(Path(options.folder or made)) as bench:
        console.print(f"an uninterrupted run first; folder {bench.folder}")
        whole = kills.reference(bench)
        for row in _parts(options, bench, whole, chance, console):
            rows.append(row)
            console.print(f"{row.part}: {row.what}: {row.told}{'' if not row.wrong else f'  WRONG: {row.wrong}'}")
            with options.out.open("a") as file:
                file.write(json.dumps(row.__dict__) + "\n")
    table = Table("part", "what", "times", "came to", "wrong")
    for row in rows:
        table.add_row(row.part, row.what, str(row.times), row.told, str(len(row.wrong)))
    console.print(table)
    sys.exit(int(any(row.wrong for row in rows)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kill -9 in all: at every site, the rest at random times")
    parser.add_argument("--soak", type=int, default=2000, help="iterations of the long run")
    parser.add_argument("--parts", default="kills,stops,places,numerics,soak", help="some of them, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--folder", type=Path, help="where runs are left; a temporary folder without")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"), help="file that each result is added to")
    return parser.parse_args()


def _parts(
    options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random, console: Console
) -> Iterator[Row]:
    parts = options.parts.split(",")
    if "kills" in parts:
        yield from _kills(options.kills, bench, whole, chance, console)
    if "stops" in parts:
        yield from _stops(bench, whole)
    if "places" in parts:
        yield from _places(bench, whole, chance)
    if "numerics" in parts:
        yield from _numerics(bench, whole)
    if "soak" in parts:
        result = soak(bench, options.soak, console.print)
        told = (
            f"memory {result.resident[0]:.0f} -> {result.resident[1]:.0f} MiB, "
            f"open files {result.files[0]} -> {result.files[1]}, threads {result.threads[0]} -> {result.threads[1]}, "
            f"processor time of an iteration {1000 * result.processor[0]:.0f} -> {1000 * result.processor[1]:.0f} ms"
            + ("" if result.beside is None else f", of a run that begins meanwhile {1000 * result.beside:.0f} ms")
            + f" ({result.slower:+.1%})"
        )
        yield Row("soak", f"{result.iterations} iterations", 1, told, result.wrong)


def _kills(count: int, bench: Bench, whole: Reference, chance: random.Random, console: Console) -> Iterator[Row]:
    by_command = min(COMMANDS, count // 10)
    by_site = min(len(SITES), (count - by_command) // 2)
    by_moment = count - by_command - by_site
    for what, trials in (
        ("at chosen places", kills.at_sites(bench, whole, SITES[:by_site], chance)),
        ("at random moments", kills.at_moments(bench, whole, by_moment, chance)),
        ("at random moments, a command's own process", kills.commands(bench, whole, by_command, chance)),
    ):
        done: list[Trial] = []
        for trial in trials:
            done.append(trial)
            console.print(f"killed {', '.join(trial.killed) or 'too late'}: {trial.wrong or 'as promised'}")
        where = Counter(place.split(",")[0] for trial in done for place in trial.killed)
        told = "; ".join(f"{place}: {number}" for place, number in where.most_common())
        yield Row("kill -9", what, where.total(), told, [wrong for trial in done for wrong in trial.wrong])


def _stops(bench: Bench, whole: Reference) -> Iterator[Row]:
    for stage, number, by in (
        # Where an iteration is done that no checkpoint would hold.
        ("sampling", 2, signal.SIGTERM),
        ("scoring", 3, signal.SIGINT),  # the first is that of the evaluation before
        ("updating", 5, signal.SIGTERM),
        ("metrics", 3, signal.SIGTERM),
        ("checkpoint", 1, signal.SIGTERM),
        ("evaluation", 2, signal.SIGTERM),
    ):
        asked = stops.politely(bench, whole, stage, number, by)
        yield Row("stop", asked.name, 1, f"saved and left in {asked.seconds:.1f} s", asked.wrong)
    for twice in (True, False):
        asked = stops.in_vain(bench, whole, None, twice)
        yield Row("stop", asked.name, 1, f"left in {asked.seconds:.1f} s", asked.wrong)


def _places(bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    full = [places.full_disk(bench, whole, share) for share in DISKS]
    yield _row("place", "a full disk, at 2% to 97% of what a run takes", full)
    yield _row("place", "files that may not grow", [places.too_large_file(bench, whole)])
    yield _row("place", "a read-only folder", [places.read_only(bench, whole)])
    yield _row("place", "a folder in use", [places.in_use(bench, whole)])
    bits = [places.flipped_bits(bench, whole, None, chance) for _ in range(2)]
    yield _row("place", "a flipped bit in each file of a checkpoint", bits)
    yield _row("place", "a file gone from one checkpoint, from all", [places.missing_part(bench, whole)])
    yield _row("place", "another model's LoRA", [places.other_model(bench, whole)])
    yield _row("place", "settings and checkpoints of older versions", [places.older_versions(bench, whole)])


def _numerics(bench: Bench, whole: Reference) -> Iterator[Row]:
    scores: list[Callable[[], list[str]]] = [
        lambda: numerics.score_of(bench, float("nan"), 0.5),
        lambda: numerics.score_of(bench, float("inf"), 0.5),
        lambda: numerics.score_of(bench, float("nan"), 0.1),
    ]
    yield _row("numbers", "scores of NaN and infinity, within max_missing and above", [one() for one in scores])
    yield _row("numbers", "scores all equal", [numerics.equal_scores(bench)])
    yield _row("numbers", "scores of 3e38", [numerics.huge_scores(bench)])
    ends = [numerics.ends_of_the_noise(bench, s, shift) for s in ("dance", "flow", "cps") for shift in (1000, 0.001)]
    yield _row("numbers", "noise levels at both ends, by all samplers", ends)
    yield _row("numbers", "two noise levels that are one", [numerics.past_the_ends(bench)])
    overflows = [numerics.overflow(bench, "bfloat16", 1e38), numerics.overflow(bench, "float16", 1e5)]
    yield _row("numbers", "overflow in bfloat16 and float16", overflows)
    yield _row("numbers", "two gradients of NaN: skipped", [numerics.bad_gradients(bench, whole, 2, 2)])
    yield _row("numbers", "three where two are allowed: stopped", [numerics.bad_gradients(bench, whole, 3, 2)])
    rates = [numerics.exploding(bench, whole, rate) for rate in RATES]
    yield _row("numbers", "learning rates of 0.1, 10 and 10000", rates)


def _row(part: str, what: str, found: list[list[str] | None]) -> Row:
    done = [wrong for wrong in found if wrong is not None]
    wrong = [one for some in done for one in some]
    told = "as promised" if not wrong else "not as promised"
    return Row(part, what, len(done), told if done else "not possible here", wrong)


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        print(f"{(time.monotonic() - began) / 60:.0f} min")
