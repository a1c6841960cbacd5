"""Measure the embedded generator on held-out subjects, by the judges that are never used as rewards.

    python experiments/embedded/measure_policy.py --out experiments/embedded/policy.json

Three kinds of pictures answer the same prompts: the world's own (the ceiling), the generator's, and the
reference itself, copied. Reported is how often the judge finds the right place, accessory, colour and
position, how often it finds the subject among `CANDIDATES` held-out ones, and the generator's share of
the ceiling over what a guess would give.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
from measure_encoders import CANDIDATES, Sample, draw, identity, prompt
from PIL import Image

from customized_grpo.config import Config, PolicyConfig
from customized_grpo.embedded.places import PLACES
from customized_grpo.embedded.scenes import ACCESSORIES, POSITIONS, Scene
from customized_grpo.embedded.subjects import COLOURS
from customized_grpo.figures.grids import image_grid
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.rollout import image_noise, sample_pictures

IDENTITY, PROMPT = "embedded/judge-identity", "embedded/judge-prompt"
GUESSES = {
    "place": 1 / len(PLACES),
    "accessory": 1 / (1 + len(ACCESSORIES)),
    "colour": 1 / (1 + len(COLOURS)),
    "position": 1 / len(POSITIONS),
    "subject": 1 / CANDIDATES,
}
GUESSES["all four"] = math.prod(GUESSES[kind] for kind in ("place", "accessory", "colour", "position"))


@torch.no_grad()
def generated(policy: Policy, samples: list[Sample], steps: int, seed: int) -> list[Sample]:
    """The samples with the policy's pictures in place of the true ones."""
    pictures = []
    sigmas = policy.sigmas(steps)
    for start in range(0, len(samples), 48):
        part = samples[start : start + 48]
        encoded = [policy.encode(s.saying.text, [Image.fromarray(s.reference.image)]) for s in part]
        noise = torch.cat([image_noise(policy, 1, seed, "measure", start + i) for i in range(len(part))])
        drawn = sample_pictures(policy, Conditions.join(encoded), noise, sigmas)
        pictures += [np.asarray(p.permute(1, 2, 0) * 255).round().astype(np.uint8) for p in drawn]
    return [
        dataclasses.replace(sample, target=Scene(picture, sample.target.mask))
        for sample, picture in zip(samples, pictures, strict=True)
    ]


def measured(bare: list[Sample], known: list[Sample], unseen: list[Sample]) -> dict[str, float]:
    """Shares of right answers, in 0..1."""
    coloured = [sample for sample in known if sample.saying.wish.colour is not None]
    found = identity(IDENTITY, bare, coloured)["segmented reference"]
    results = {"subject": found[f"top-1 of {CANDIDATES}"], "identity score": found["true picture mean"]}
    for name, part in prompt(PROMPT, known, unseen).items():
        for key, value in part.items():
            kind = key.split(",")[0]
            if (", 1 of " in key or key == "all four") and kind in GUESSES:
                results[f"{kind}, {name}"] = value
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=PolicyConfig().path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--grid", type=Path, help="PNG of the first pictures, to look at")
    parser.add_argument("--samples", type=int, default=CANDIDATES, help=f"a multiple of {CANDIDATES}")
    parser.add_argument("--steps", type=int, default=Config().evaluation.steps)
    parser.add_argument("--seed", type=int, default=12)
    options = parser.parse_args()
    policy = build_policy(PolicyConfig(path=options.policy, lora=None))
    sets = [
        draw(options.samples, coloured=coloured, held_out=held_out, seed=options.seed)
        for coloured, held_out in ((False, False), (True, False), (True, True))
    ]
    drawn = [generated(policy, samples, options.steps, options.seed) for samples in sets]
    copied = [[dataclasses.replace(s, target=s.reference) for s in samples] for samples in sets]
    ways = {"real pictures": sets, "generator": drawn, "copied reference": copied}
    results = {way: measured(*samples) for way, samples in ways.items()}
    share = {}
    for name, ceiling in results["real pictures"].items():
        guess = GUESSES.get(name.split(",")[0])
        if guess is not None:
            share[name] = (results["generator"][name] - guess) / max(ceiling - guess, 1e-9)
    results["generator's share of the ceiling"] = share
    width = max(len(name) for name in results["generator"])
    print(f"{'':{width}}  " + "  ".join(f"{way:>16}" for way in (*ways, "share of ceiling")))
    for name in results["generator"]:
        row = [f"{results[way][name]:16.3f}" for way in ways] + [f"{share.get(name, float('nan')):16.2f}"]
        print(f"{name:{width}}  " + "  ".join(row))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.grid:
        rows = [
            [Image.fromarray(picture) for picture in (a.reference.image, b.target.image, a.target.image)]
            for a, b in list(zip(sets[1], drawn[1], strict=True))[:12]
        ]
        labels = [sample.saying.text for sample in sets[1][:12]]
        image_grid(options.grid, rows, labels, ("reference", "generated", "the world's own"))


if __name__ == "__main__":
    main()
