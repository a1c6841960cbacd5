"""What a training keeps to be looked at later: small pictures with their scores, every few iterations.

RUN/samples/iteration-000015/   the same few held-out pairs each time; iteration 0 is the base model's
RUN/groups/iteration-000015/    the iteration's best and worst group, with every score and advantage

A folder counts once its JSON is there, which is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from customized_grpo.evaluation import Evaluation, shown_pairs
from customized_grpo.protocols import ROLES, PairDataset
from customized_grpo.trainer.groups import Groups
from customized_grpo.utils.pixels import to_image
from customized_grpo.utils.records import write_bytes, write_json

SAMPLES, GROUPS = "samples", "groups"
SIDE = 192  #: pixels of a kept picture's longer side, at most
_INDEX = "index.json"


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True)


class Sample(_Kept):
    """One held-out pair: file names of its first reference and of what was drawn, and that picture's scores."""

    key: str
    prompt: str
    reference: str
    picture: str
    scores: dict[str, float | None]


class Samples(_Kept):
    """Held-out pairs as the policy drew them after `iteration` iterations."""

    iteration: int
    pairs: list[Sample]


class Group(_Kept):
    """One group of G pictures (file names), and G numbers of each kind; `learned` as in `Groups`."""

    rank: Literal["best", "worst", "only"]
    key: str
    prompt: str
    reference: str
    pictures: list[str]
    scores: dict[str, list[float | None]]
    advantages: dict[str, list[float | None]]
    bonus: list[float | None]
    learned: list[float | None]


class GroupChoice(_Kept):
    """The best and the worst of the `drawn` groups of an iteration, or the only one."""

    iteration: int
    drawn: int
    groups: list[Group]


_Snapshot = TypeVar("_Snapshot", Samples, GroupChoice)


def folder_of(run: Path, kind: str, iteration: int) -> Path:
    return run / kind / f"iteration-{iteration:06d}"


def keep_samples(run: Path, iteration: int, held_out: PairDataset, images: int, drawn: Evaluation) -> None:
    """Keep a few pairs of an evaluation, the same at every call. `images` is how many each pair has there."""
    folder = folder_of(run, SAMPLES, iteration)
    pairs = []
    for i in shown_pairs(len(held_out)):
        pair, first = held_out[i], i * images
        reference, picture = f"{i:05d}-reference.jpg", f"{i:05d}.jpg"
        write_bytes(folder / reference, thumbnail(pair.references[0]))
        with Image.open(drawn.pictures[first]) as image:
            write_bytes(folder / picture, thumbnail(image))
        scores: dict[str, float | None] = {name: values[first] for name, values in drawn.scores.items()}
        pairs.append(Sample(key=pair.key, prompt=pair.prompt, reference=reference, picture=picture, scores=scores))
    write_json(folder / _INDEX, Samples(iteration=iteration, pairs=pairs).model_dump())


def keep_groups(run: Path, iteration: int, groups: Groups) -> None:
    """Keep the best and the worst of the groups."""
    folder = folder_of(run, GROUPS, iteration)
    best, worst = best_and_worst(groups)
    kept = []
    for rank, i in (("only", best),) if best == worst else (("best", best), ("worst", worst)):
        pair = groups.pairs[i]
        names = [f"{rank}-{number:03d}.jpg" for number in range(groups.pictures.shape[1])]
        for name, picture in zip(names, groups.pictures[i], strict=True):
            write_bytes(folder / name, thumbnail(to_image(picture)))
        write_bytes(folder / f"{rank}-reference.jpg", thumbnail(pair.references[0]))
        kept.append(
            {
                "rank": rank,
                "key": pair.key,
                "prompt": pair.prompt,
                "reference": f"{rank}-reference.jpg",
                "pictures": names,
                "scores": {name: values[i].tolist() for name, values in groups.scores.items()},
                "advantages": {role: groups.credit.advantages[role][i].tolist() for role in ROLES},
                "bonus": groups.credit.bonus[i].tolist(),
                "learned": groups.learned[i].tolist(),
            }
        )
    write_json(folder / _INDEX, {"iteration": iteration, "drawn": len(groups.pairs), "groups": kept})


def best_and_worst(groups: Groups) -> tuple[int, int]:
    """Which group scored highest and which lowest: by each score's group mean, in its own standard deviations
    over the groups, averaged over the scores; a missing one counts as the mean, and guards do not count. Equal where
    there is one group alone.
    """
    taught = [values for name, values in groups.scores.items() if name not in groups.guards]
    means = torch.stack([values.double().nanmean(1) for values in taught])  # (scores, groups)
    centred = (means - means.nanmean(1, keepdim=True)).nan_to_num()
    spread = centred.square().mean(1, keepdim=True).sqrt()
    order = (centred / spread.clamp(min=1e-12)).mean(0).argsort(descending=True, stable=True)
    return int(order[0]), int(order[-1])


def read_samples(run: Path) -> dict[Path, Samples]:
    """All that `keep_samples` kept, by its folder, in the order of the iterations."""
    return _read(run / SAMPLES, Samples)


def read_groups(run: Path) -> dict[Path, GroupChoice]:
    """All that `keep_groups` kept, by its folder, in the order of the iterations."""
    return _read(run / GROUPS, GroupChoice)


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """A picture as JPEG, its longer side at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, format="JPEG", quality=92, subsampling=0)  # red on grey keeps its edges
    return buffer.getvalue()


def _read(folder: Path, kind: type[_Snapshot]) -> dict[Path, _Snapshot]:
    found: dict[Path, _Snapshot] = {}
    for index in _indices(folder):
        try:
            found[index.parent] = kind.model_validate_json(index.read_bytes())
        except (OSError, ValidationError):
            continue  # of a process that was killed, or of another version
    return dict(sorted(found.items(), key=lambda item: item[1].iteration))


def _indices(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob(f"iteration-*/{_INDEX}"))
