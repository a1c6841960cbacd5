"""Render the pairs that the embedded models are trained on into plain numpy files.

    python experiments/embedded/render.py --out build/pairs --pairs 40000 --combinations known --imperfect
    python experiments/embedded/render.py --out build/world --pairs 16000 --seed 2

Writes reference.npy and target.npy (uint8, pairs x 64 x 64 x 3), the subjects' masks and prompts.jsonl.

`--imperfect` makes the pairs as faulty as those that real subject-driven generators are trained on: some targets lack
a part of the prompt, show a subject that has drifted, or are the reference itself, copied. The generator learns the same
faults, which tuning can mend or, where only identity is rewarded, make worse.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from customized_grpo.embedded.places import PLACES, SIDE
from customized_grpo.embedded.scenes import (
    ACCESSORIES,
    POSITIONS,
    Attributes,
    render_reference,
    render_target,
    sample_attributes,
    sample_offset,
)
from customized_grpo.embedded.subjects import Subject, sample_subject, sprites

CHUNK = 1000
UNKNOWN = 0.3  # share of held-out combinations, with --combinations all
#: Shares of imperfect targets among those that could have the fault. The first four are against the prompt (of the
#: missing accessories, one in four is another one; of the wrong places, half are the reference's own), the last two
#: against the reference.
FAULTS = {"accessory": 0.06, "colour": 0.05, "position": 0.05, "place": 0.05, "hue": 0.02, "subject": 0.01}
COPIED = 0.12  # share of imperfect targets that are the reference itself: place, position and pose


def with_faults(
    subject: Subject, attributes: Attributes, other: str, rng: np.random.Generator
) -> tuple[Subject, Attributes]:
    """Return subject and prompt attributes of an imperfect target; `other` is the reference's place."""
    met = {fault: rng.random() < share for fault, share in FAULTS.items()}
    if attributes.accessory and met["accessory"]:
        worn = [a for a in ACCESSORIES if a != attributes.accessory]
        attributes = replace(attributes, accessory=str(rng.choice(worn)) if rng.random() < 0.25 else None)
    if attributes.colour and met["colour"]:
        attributes = replace(attributes, colour=None)
    if attributes.position and met["position"]:
        attributes = replace(attributes, position=str(rng.choice([p for p in POSITIONS if p != attributes.position])))
    if met["place"]:
        attributes = replace(attributes, place=other if rng.random() < 0.5 else str(rng.choice([*PLACES])))
    if met["subject"]:
        same = [i for i in sprites(held_out=False) if Subject(i).word == subject.word]
        subject = replace(subject, sprite=int(rng.choice(same)))
    if met["hue"]:
        drift = float(rng.uniform(0.08, 0.25)) * (1 if rng.random() < 0.5 else -1)
        subject = replace(subject, hue=(subject.hue + drift) % 1)
    return subject, attributes


def render_chunk(
    seed: int, chunk: int, pairs: int, combinations: str, imperfect: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    rng = np.random.default_rng([seed, chunk])
    arrays = {name: np.empty((pairs, SIDE, SIDE, 3), np.uint8) for name in ("reference", "target")}
    arrays |= {f"{name}_mask": np.empty((pairs, SIDE, SIDE), np.bool_) for name in ("reference", "target")}
    lines = []
    for i in range(pairs):
        subject = sample_subject(rng, held_out=False)
        attributes = sample_attributes(rng, held_out=combinations == "all" and rng.random() < UNKNOWN)
        other = str(rng.choice([place for place in PLACES if place != attributes.place]))
        stray = sample_offset(rng)
        reference = render_reference(subject, other, rng, stray)
        if imperfect and rng.random() < COPIED:
            target = reference
        else:
            shown = with_faults(subject, attributes, other, rng) if imperfect else (subject, attributes)
            target = render_target(*shown, rng, stray)
        arrays["reference"][i], arrays["reference_mask"][i] = reference.image, reference.mask
        arrays["target"][i], arrays["target_mask"][i] = target.image, target.mask
        entry = {
            "prompt": attributes.prompt(subject.word),
            "subject": asdict(subject),
            "attributes": asdict(attributes),
        }
        lines.append(json.dumps(entry))
    return arrays, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--combinations", choices=("known", "all"), default="all")
    parser.add_argument("--imperfect", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = [min(CHUNK, options.pairs - start) for start in range(0, options.pairs, CHUNK)]
    render = partial(render_chunk, combinations=options.combinations, imperfect=options.imperfect)
    files: dict[str, np.memmap] = {}
    with (
        ProcessPoolExecutor(options.workers) as pool,
        (options.out / "prompts.jsonl").open("w", encoding="utf-8") as prompts,
    ):
        chunks = pool.map(render, [options.seed] * len(sizes), range(len(sizes)), sizes)
        for chunk, (arrays, lines) in enumerate(chunks):
            for name, array in arrays.items():
                if name not in files:
                    shape = (options.pairs, *array.shape[1:])
                    files[name] = np.lib.format.open_memmap(options.out / f"{name}.npy", "w+", array.dtype, shape)
                files[name][chunk * CHUNK : chunk * CHUNK + len(array)] = array
            prompts.write("\n".join(lines) + "\n")
            print(f"{chunk + 1}/{len(sizes)}", flush=True)


if __name__ == "__main__":
    main()
