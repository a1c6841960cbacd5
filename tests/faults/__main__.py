"""`python -m tests.faults`: breaks runs on purpose, and prints the results as a table.

Every result is appended to a file of JSON lines as soon as it is known. Exit code 1 if any promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import any_damages, any_paths, any_rewards, campaigns, generated, kills, numerics, places, stops
from .bench import Bench
from .kills import Reference
from .sites import SITES
from .soak import soak


@dataclass
class Row:
    """A line of the table."""

    part: str
    what: str
    times: int
    result: str
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    """Read the options, do all parts, show the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kill -9 in all: at every site, the rest at random times")
    parser.add_argument("--settings", type=int, default=500, help="generated settings to train with")
    parser.add_argument("--inputs", type=int, default=200, help="generated paths, rewards and damages of a run, each")
    parser.add_argument("--soak", type=int, default=2000, help="iterations of the long run")
    parser.add_argument(
        "--parts", default="kills,stops,places,numerics,settings,inputs,soak", help="some of them, with commas"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--folder", type=Path, help="where runs are left; a temporary folder without")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"), help="file that each result is added to")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    parts = {"kills": _kills, "stops": _stops, "places": _places, "numerics": _numerics}
    parts |= {"settings": _settings, "inputs": _inputs, "soak": _soak}
    table, broken = Table("part", "what", "times", "result", "wrong"), False
    with tempfile.TemporaryDirectory(prefix="cgrpo-faults-") as made, Bench(Path(options.folder or made)) as bench:
        console.print(f"an uninterrupted run first; folder {bench.folder}")
        whole, chance = kills.reference(bench), random.Random(options.seed)
        for part in options.parts.split(","):
            for row in parts[part](options, bench, whole, chance):
                broken = broken or bool(row.wrong)
                table.add_row(row.part, row.what, str(row.times), row.result, str(len(row.wrong)))
                console.print(f"{row.part}: {row.what}: {row.result} {row.wrong or ''}", markup=False)
                with options.out.open("a") as file:
                    file.write(json.dumps(row.__dict__) + "\n")
    console.print(table)
    sys.exit(int(broken))


def _kills(options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    by_site = min(len(SITES), options.kills // 2)
    for what, trials in (
        ("at chosen places", kills.at_sites(bench, whole, SITES[:by_site], chance)),
        ("at random moments", kills.at_moments(bench, whole, options.kills - by_site, chance)),
    ):
        done = list(trials)
        where = Counter(place.split(",")[0] for trial in done for place in trial.killed)
        result = "; ".join(f"{place}: {number}" for place, number in where.most_common())
        yield Row("kill -9", what, where.total(), result, [wrong for trial in done for wrong in trial.wrong])


def _stops(options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    for stage, number, by in (
        ("sampling", 2, signal.SIGTERM),  # an iteration is done that no checkpoint would hold
        ("scoring", 3, signal.SIGINT),  # the first is that of the evaluation before
        ("updating", 5, signal.SIGTERM),
        ("metrics", 3, signal.SIGTERM),
        ("checkpoint", 1, signal.SIGTERM),
        ("evaluation", 2, signal.SIGTERM),
    ):
        requested = stops.politely(bench, whole, stage, number, by)
        yield Row("stop", requested.name, 1, f"saved and ended in {requested.seconds:.1f} s", requested.wrong)
    for twice in (True, False):
        requested = stops.in_vain(bench, whole, None, twice)
        yield Row("stop", requested.name, 1, f"ended in {requested.seconds:.1f} s", requested.wrong)


def _places(options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    shares = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
    full = [places.full_disk(bench, whole, share) for share in shares]
    yield _row("place", "a full disk, at 2% to 97% of what a run takes", full)
    yield _row("place", "generate, export and merge to a full disk", [places.full_output(bench, whole)])
    yield _row("place", "files that may not grow", [places.too_large_file(bench, whole)])
    yield _row("place", "a read-only folder", [places.read_only(bench, whole)])
    yield _row("place", "a folder in use", [places.in_use(bench, whole)])
    bits = [places.damaged(bench, whole, None, chance) for _ in range(2)]
    yield _row("place", "a flipped bit in each file of a checkpoint, a file gone", bits)
    yield _row("place", "another model's LoRA, older versions, no whole checkpoint", [places.refused(bench, whole)])


def _numerics(options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    faults = [("scores[:-3] = float('nan')", 0.5), ("scores[:-3] = float('inf')", 0.5)]
    faults += [("scores[:-3] = float('nan')", 0.1), ("scores[:] = 50.0", 0.0)]
    faults.append(("scores = 3e38 * torch.linspace(-1, 1, len(scores))", 0.0))
    found = [numerics.scores(bench, fault, limit) for fault, limit in faults]
    yield _row("numbers", "scores of NaN and infinity, all equal, of 3e38", found)
    ends = [(sampler, shift) for sampler in ("dance", "flow", "cps") for shift in (1000, 0.001)] + [("dance", 1e9)]
    found = [numerics.ends_of_the_noise(bench, sampler, shift) for sampler, shift in ends]
    yield _row("numbers", "noise levels at both ends, by all samplers, and two that are the same", found)
    yield _row("numbers", "overflow in bfloat16", [numerics.overflow(bench, "bfloat16", 1e38)])
    gradients = [numerics.bad_gradients(bench, whole, count, 2) for count in (2, 3)]
    yield _row("numbers", "two gradients of NaN, and three where two are allowed", gradients)
    rates = [numerics.exploding(bench, whole, rate) for rate in (0.1, 10.0, 1e4)]
    yield _row("numbers", "learning rates of 0.1, 10 and 10000", rates)


def _settings(options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    """Generated settings, in this process; the first one that is not as promised ends the part."""
    try:
        found = generated.generated(generated.try_setting, options.settings, options.seed)
    except AssertionError as error:
        yield Row("settings", "generated by their types", 0, "not as promised", [str(error)])
    else:
        result = "; ".join(f"{what}: {number}" for what, number in found.most_common())
        yield Row("settings", "generated by their types", found.total(), result)


def _inputs(options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    for what in (any_paths.paths, any_rewards.rewards, any_damages.damages):
        tried = campaigns.tried(what(), options.inputs, bench, whole.folder / "run", options.seed)
        yield Row(
            "inputs", f"generated {what.__name__}", tried.found.total() + len(tried.wrong), str(tried), tried.wrong
        )


def _soak(options: argparse.Namespace, bench: Bench, whole: Reference, chance: random.Random) -> Iterator[Row]:
    result = soak(bench, options.soak, print)
    figures = f"MiB {result.resident}, files {result.files}, threads {result.threads}, s {result.processor}"
    yield Row("soak", f"{result.iterations} iterations", 1, figures, result.wrong)


def _row(part: str, what: str, found: list[list[str] | None] | list[list[str]]) -> Row:
    done = [wrong for wrong in found if wrong is not None]
    wrong = [one for some in done for one in some]
    result = "not as promised" if wrong else "as promised"
    return Row(part, what, len(done), result if done else "not possible here", wrong)


if __name__ == "__main__":
    main()
