"""Small images with their scores, stored every few iterations for the report.

RUN/samples/iteration-000015/   the same few held-out pairs each time; iteration 0 is the base model
RUN/groups/iteration-000015/    the iteration's best and worst group, with every score and advantage

Each folder has an index.json, which is written last: a folder without it is incomplete.
"""

from pathlib import Path
from typing import Literal, TypeVar

import torch
from PIL import Image
from pydantic import BaseModel

from customized_grpo.evaluation import Evaluation, shown_pairs
from customized_grpo.protocols import ROLES, PairDataset
from customized_grpo.trainer.groups import Groups
from customized_grpo.utils.pixels import encoded, to_image
from customized_grpo.utils.records import read_regular, write_bytes, write_json

SAMPLES, GROUPS = "samples", "groups"
SIDE = 192  #: pixels of an image's longer side, at most
_INDEX = "index.json"


class Sample(BaseModel):
    """One held-out pair: file names of its first reference and of its first generated image, and the image's scores."""

    key: str
    prompt: str
    reference: str
    image: str
    scores: dict[str, float | None]


class Samples(BaseModel):
    """Held-out pairs after `iteration` iterations."""

    iteration: int
    pairs: list[Sample]


class Group(BaseModel):
    """One group: file names of its G images, and G numbers of each kind; `learned` as in `Groups`."""

    rank: Literal["best", "worst", "only"]
    key: str
    prompt: str
    reference: str
    images: list[str]
    scores: dict[str, list[float | None]]
    advantages: dict[str, list[float | None]]
    bonus: list[float | None]
    learned: list[float | None]


class GroupChoice(BaseModel):
    """The best and the worst of an iteration's groups, or the only one."""

    iteration: int
    sampled: int
    groups: list[Group]


_Snapshot = TypeVar("_Snapshot", Samples, GroupChoice)


def keep_samples(run: Path, iteration: int, held_out: PairDataset, images: int, evaluation: Evaluation) -> None:
    """Store a few pairs of an evaluation, which has `images` images of each pair."""
    folder = _folder(run, SAMPLES, iteration)
    pairs = []
    for i in shown_pairs(len(held_out)):
        pair, first = held_out[i], i * images
        reference, file = f"{i:05d}-reference.jpg", f"{i:05d}.jpg"
        write_bytes(folder / reference, thumbnail(pair.references[0]))
        with Image.open(evaluation.images[first]) as image:
            write_bytes(folder / file, thumbnail(image))
        scores: dict[str, float | None] = {name: values[first] for name, values in evaluation.scores.items()}
        pairs.append(Sample(key=pair.key, prompt=pair.prompt, reference=reference, image=file, scores=scores))
    write_json(folder / _INDEX, Samples(iteration=iteration, pairs=pairs).model_dump())


def keep_groups(run: Path, iteration: int, groups: Groups) -> None:
    """Store the best and the worst of the groups."""
    folder = _folder(run, GROUPS, iteration)
    best, worst = best_and_worst(groups)
    stored = []
    for rank, i in (("only", best),) if best == worst else (("best", best), ("worst", worst)):
        pair = groups.pairs[i]
        names = [f"{rank}-{number:03d}.jpg" for number in range(len(groups.images[i]))]
        for name, pixels in zip(names, groups.images[i], strict=True):
            write_bytes(folder / name, thumbnail(to_image(pixels)))
        write_bytes(folder / f"{rank}-reference.jpg", thumbnail(pair.references[0]))
        stored.append(
            {
                "rank": rank,
                "key": pair.key,
                "prompt": pair.prompt,
                "reference": f"{rank}-reference.jpg",
                "images": names,
                "scores": {name: values[i].tolist() for name, values in groups.scores.items()},
                "advantages": {role: groups.credit.advantages[role][i].tolist() for role in ROLES},
                "bonus": groups.credit.bonus[i].tolist(),
                "learned": groups.learned[i].tolist(),
            }
        )
    write_json(folder / _INDEX, {"iteration": iteration, "sampled": len(groups.pairs), "groups": stored})


def best_and_worst(groups: Groups) -> tuple[int, int]:
    """Return the indices of the groups with the highest and the lowest scores; they are equal if there is only one.

    Scores' group means are standardized over the groups and averaged, without guards. A missing score counts as the
    mean.
    """
    trained = [values for name, values in groups.scores.items() if name not in groups.guards]
    means = torch.stack([values.double().nanmean(1) for values in trained])  # (scores, groups)
    centered = (means - means.nanmean(1, keepdim=True)).nan_to_num()
    spread = centered.square().mean(1, keepdim=True).sqrt()
    order = (centered / spread.clamp(min=1e-12)).mean(0).argsort(descending=True, stable=True)
    return int(order[0]), int(order[-1])


def read_samples(run: Path) -> dict[Path, Samples]:
    """Return all stored samples by their folder, in the order of the iterations."""
    return _read(run / SAMPLES, Samples)


def read_groups(run: Path) -> dict[Path, GroupChoice]:
    """Return all stored groups by their folder, in the order of the iterations."""
    return _read(run / GROUPS, GroupChoice)


def thumbnail(image: Image.Image) -> bytes:
    """Encode an image as JPEG, its longer side at most SIDE pixels."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return encoded(small, "JPEG", quality=92, subsampling=0)  # sharp edges of red on grey


def _folder(run: Path, kind: str, iteration: int) -> Path:
    return run / kind / f"iteration-{iteration:06d}"


def _read(folder: Path, kind: type[_Snapshot]) -> dict[Path, _Snapshot]:
    found: dict[Path, _Snapshot] = {}
    for index in sorted(folder.glob(f"iteration-*/{_INDEX}")):
        try:
            found[index.parent] = kind.model_validate_json(read_regular(index))
        except (OSError, ValueError):
            continue  # of a process that was killed, or of another version
    return dict(sorted(found.items(), key=lambda item: item[1].iteration))
