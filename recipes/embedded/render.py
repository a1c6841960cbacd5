"""Render the pairs that the embedded models are trained on, once, into plain numpy files.

    python recipes/embedded/render.py --out build/world --pairs 40000

Rendered ahead because a CPU that trains should not wait for the painter. Writes reference.npy and
target.npy (uint8, pairs x 64 x 64 x 3), the subjects' masks and prompts.jsonl.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from customized_grpo.world.places import SIDE
from customized_grpo.world.scenes import draw_pair, draw_wish
from customized_grpo.world.subjects import draw_subject

CHUNK = 1000


def render_chunk(seed: int, chunk: int, pairs: int, held_out: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    rng = np.random.default_rng([seed, chunk])
    arrays = {
        "reference": np.empty((pairs, SIDE, SIDE, 3), np.uint8),
        "target": np.empty((pairs, SIDE, SIDE, 3), np.uint8),
        "reference_mask": np.empty((pairs, SIDE, SIDE), np.bool_),
        "target_mask": np.empty((pairs, SIDE, SIDE), np.bool_),
    }
    lines = []
    for i in range(pairs):
        subject, wish = draw_subject(rng, held_out=held_out), draw_wish(rng, held_out=held_out)
        reference, target = draw_pair(subject, wish, rng)
        arrays["reference"][i], arrays["reference_mask"][i] = reference.image, reference.mask
        arrays["target"][i], arrays["target_mask"][i] = target.image, target.mask
        entry = {
            "prompt": wish.prompt(subject.word),
            "subject": asdict(subject),
            "wish": asdict(wish),
        }
        lines.append(json.dumps(entry))
    return arrays, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chunks = -(-options.pairs // CHUNK)
    files: dict[str, np.memmap] = {}
    with (
        ProcessPoolExecutor(options.workers) as pool,
        (options.out / "prompts.jsonl").open("w", encoding="utf-8") as prompts,
    ):
        sizes = [min(CHUNK, options.pairs - i * CHUNK) for i in range(chunks)]
        seeds, held = [options.seed] * chunks, [options.held_out] * chunks
        for chunk, (arrays, lines) in enumerate(pool.map(render_chunk, seeds, range(chunks), sizes, held)):
            for name, array in arrays.items():
                if name not in files:
                    files[name] = np.lib.format.open_memmap(
                        options.out / f"{name}.npy",
                        "w+",
                        array.dtype,
                        (options.pairs, *array.shape[1:]),
                    )
                files[name][chunk * CHUNK : chunk * CHUNK + len(array)] = array
            prompts.write("\n".join(lines) + "\n")
            print(f"{chunk + 1}/{chunks}", flush=True)


if __name__ == "__main__":
    main()
