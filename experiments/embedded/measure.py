"""Measure the embedded encoders, the autoencoder and the generator on held-out subjects.

    python experiments/embedded/measure.py encoders --seed 11
    python experiments/embedded/measure.py vae --grid reconstructions.png
    python experiments/embedded/measure.py policy

Encoders, through the rewards that use them. Identity: is a held-out subject's reference nearest to its own image, of
`CANDIDATES`? Prompt: does the true word of each kind score best among all words of that kind? Prompts for known and for
held-out combinations.

Policy, by the monitors that are never used as rewards. Three kinds of images answer the same prompts: the world's own (the
ceiling), the generator's, and the reference itself, copied. Reported is how often the monitor finds the right place,
accessory, colour and position, how often it finds the subject, how often the image is a copy, and the generator's share of
the ceiling over a guess.

VAE: peak signal-to-noise ratio of reconstructions, the mean difference of neighbouring pixels' differences (edges), and
seconds per decoded image.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from data import CHOICES, Prompt
from PIL import Image
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.config.loading import load_config
from customized_grpo.embedded.scenes import POSITIONS, Scene, sample_attributes, sample_pair
from customized_grpo.embedded.subjects import sample_subject
from customized_grpo.figures.grids import image_grid
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Conditions, Pair, Policy, Reward
from customized_grpo.rewards import build_reward
from customized_grpo.trainer.rollout import image_noise, sample_images
from customized_grpo.utils.hub import resolve

CANDIDATES = 96
EMBEDDED = load_config()
ENCODERS = ("reward-identity", "monitor-identity", "reward-prompt", "monitor-prompt")
#: Choices of each kind that a sample can have; its position is always given.
NAMED = {kind: [c for c in choices if (kind, c) != ("position", None)] for kind, choices in CHOICES.items()}
FOUR = ("place", "accessory", "colour", "position")
GUESSES = {kind: 1 / len(NAMED[kind]) for kind in FOUR} | {"subject": 1 / CANDIDATES}
GUESSES["all four"] = math.prod(GUESSES[kind] for kind in FOUR)
#: Correlation, times 100, with the reference's background from which on an image is a copy.
COPIED = 70
Results = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """A held-out subject, its prompt, and both images."""

    prompt: Prompt
    reference: Scene
    target: Scene

    def pair(self, key: str) -> Pair:
        mask = Image.fromarray(self.reference.mask.astype(np.uint8) * 255)
        return Pair(key, self.prompt.text, (Image.fromarray(self.reference.image),), (mask,))


def draw(count: int, *, coloured: bool, held_out: bool, seed: int) -> list[Sample]:
    """Render samples of held-out subjects, with known or with held-out combinations."""
    rng = np.random.default_rng([seed, count, coloured, held_out])
    samples: list[Sample] = []
    while len(samples) < count:
        subject, attributes = sample_subject(rng, held_out=True), sample_attributes(rng, held_out=held_out)
        attributes = replace(attributes, position=attributes.position or str(rng.choice(list(POSITIONS))))
        if coloured or attributes.colour is None:
            samples.append(Sample(Prompt(subject.word, attributes), *sample_pair(subject, attributes, rng)))
    return samples


def tensors(samples: list[Sample], name: str) -> Tensor:
    return torch.from_numpy(np.stack([getattr(s, name).image for s in samples])).permute(0, 3, 1, 2).float() / 255


def spread(name: str, scores: Tensor) -> Results:
    return {f"{name} mean": float(scores.mean()), f"{name} std": float(scores.std())}


def identity(path: str, samples: list[Sample], others: list[Sample]) -> dict[str, Results]:
    """Score an identity encoder with the cut-out reference and with the plain one; `others` may have other colours."""
    coloured, results = [sample for sample in others if sample.prompt.attributes.colour is not None], {}
    for way in ("segmented reference", "plain reference"):
        options = {"segmented": way.startswith("segmented")}
        reward = build_reward(RewardConfig(kind="dino", role="identity", path=path, options=options), "cpu")
        pairs, targets = [sample.pair(str(i)) for i, sample in enumerate(samples)], tensors(samples, "target")
        true, other, first = [], [], []
        for start in range(0, len(samples), CANDIDATES):
            among = slice(start, start + CANDIDATES)
            # Row i: the scores of all these images against reference i.
            table = torch.stack([reward(targets[among], [pair] * CANDIDATES) for pair in pairs[among]])
            true.append(table.diagonal())
            other.append(table[~torch.eye(CANDIDATES, dtype=torch.bool)])
            first.append(table.argmax(1) == torch.arange(CANDIDATES))
        references = [sample.pair(f"coloured {i}") for i, sample in enumerate(coloured)]
        results[way] = {
            f"top-1 of {CANDIDATES}": float(torch.cat(first).float().mean()),
            **spread("true image", torch.cat(true)),
            **spread("copied reference", reward(tensors(samples, "reference"), pairs)),
            **spread("in another colour", reward(tensors(coloured, "target"), references)),
            **spread("wrong subject", torch.cat(other)),
        }
    return results


def prompt(path: str, known: list[Sample], held_out: list[Sample]) -> dict[str, Results]:
    """Score a prompt encoder on known and on held-out combinations."""
    reward = build_reward(RewardConfig(kind="clip", role="prompt", path=path), "cpu")
    return {"known combinations": swaps(reward, known), "held-out combinations": swaps(reward, held_out)}


def swaps(reward: Reward, samples: list[Sample]) -> Results:
    """Score images with their prompts and with prompts in which one part is another."""
    targets, pairs = tensors(samples, "target"), [sample.pair(str(i)) for i, sample in enumerate(samples)]
    true = reward(targets, pairs)
    results = {
        **spread("true prompt", true),
        **spread("copied reference", reward(tensors(samples, "reference"), pairs)),
        **spread("wrong prompt", reward(targets, pairs[1:] + pairs[:1])),
    }
    all_right = torch.ones(len(samples), dtype=torch.bool)
    for kind, choices in NAMED.items():
        texts = [[sample.prompt.swapped(kind, choice).text for sample in samples] for choice in choices]
        swapped = [[replace(s.pair(t), prompt=t) for s, t in zip(samples, row, strict=True)] for row in texts]
        scores = torch.stack([reward(targets, row) for row in swapped], dim=1)
        labels = torch.tensor([choices.index(sample.prompt.parts[kind]) for sample in samples])
        wrong = scores[torch.nn.functional.one_hot(labels, len(choices)) == 0]
        right = scores.argmax(1) == labels
        if kind != "word":
            all_right &= right
        results[f"{kind}, 1 of {len(choices)}"] = float(right.float().mean())
        results[f"{kind}, loss by a wrong one"] = float(true.mean() - wrong.mean())
    return {**results, "all four": float(all_right.float().mean())}


@torch.no_grad()
def generated(policy: Policy, samples: list[Sample], steps: int, seed: int) -> list[Sample]:
    """Return the samples with the policy's images as targets."""
    made, sigmas = [], policy.sigmas(steps)
    for start in range(0, len(samples), 48):
        part = samples[start : start + 48]
        encoded = [policy.encode(s.prompt.text, [Image.fromarray(s.reference.image)]) for s in part]
        noise = torch.cat([image_noise(policy, 1, seed, "measure", start + i) for i in range(len(part))])
        for sample, image in zip(part, sample_images(policy, Conditions.join(encoded), noise, sigmas), strict=True):
            pixels = np.asarray(image.permute(1, 2, 0) * 255).round().astype(np.uint8)
            made.append(replace(sample, target=Scene(pixels, sample.target.mask)))
    return made


def right_answers(bare: list[Sample], known: list[Sample], unseen: list[Sample]) -> Results:
    """Return shares of right answers by the monitors, in 0..1, and the mean identity score."""
    found = identity("embedded/monitor-identity", bare, known)["segmented reference"]
    results = {"subject": found[f"top-1 of {CANDIDATES}"], "identity score": found["true image mean"]}
    guard = build_reward(RewardConfig(kind="copy-paste", role="guard", options={"threshold": COPIED}), "cpu")
    copied = guard(tensors(bare, "target"), [sample.pair(str(i)) for i, sample in enumerate(bare)])
    results["copied"] = float(copied.mean()) / 100
    for name, part in prompt("embedded/monitor-prompt", known, unseen).items():
        results |= {f"{kind}, {name}": part[f"{kind}, 1 of {len(NAMED[kind])}"] for kind in FOUR}
        results[f"all four, {name}"] = part["all four"]
    return results


def measure_encoders(
    options: argparse.Namespace, bare: list[Sample], known: list[Sample], unseen: list[Sample]
) -> object:
    results = {}
    for name in options.only:
        path = f"embedded/{name}"
        found = identity(path, bare, known) if name.endswith("identity") else prompt(path, known, unseen)
        results[name] = {way: {key: round(one, 3) for key, one in values.items()} for way, values in found.items()}
    return results


def measure_policy(options: argparse.Namespace, *sets: list[Sample]) -> object:
    policy = build_policy(EMBEDDED.policy.model_copy(update={"path": options.policy, "lora": None}))
    made = [generated(policy, samples, options.steps, options.seed) for samples in sets]
    copied = [[replace(s, target=s.reference) for s in samples] for samples in sets]
    ways = {"real images": sets, "generator": made, "copied reference": copied}
    results = {way: right_answers(*samples) for way, samples in ways.items()}
    guesses = {name: GUESSES.get(name.split(",")[0]) for name in results["generator"]}
    results["generator's share of the ceiling"] = {
        name: (results["generator"][name] - guess) / max(results["real images"][name] - guess, 1e-9)
        for name, guess in guesses.items()
        if guess is not None
    }
    if options.grid:
        rows = [
            [Image.fromarray(image) for image in (a.reference.image, b.target.image, a.target.image)]
            for a, b in zip(sets[1][:12], made[1][:12], strict=True)
        ]
        labels = [sample.prompt.text for sample in sets[1][:12]]
        image_grid(options.grid, rows, labels, ("reference", "generated", "the world's own"))
    return results


@torch.no_grad()
def measure_vae(options: argparse.Namespace, *sets: list[Sample]) -> object:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(resolve(options.policy), subfolder=options.subfolder, torch_dtype=torch.float32)
    pixels = 2 * torch.cat([tensors(samples, name) for samples in sets for name in ("reference", "target")]) - 1
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(48)])
    began = time.perf_counter()
    decoded = torch.cat([vae.decode(part).sample for part in latents.split(48)]).clamp(-1, 1)
    seconds = time.perf_counter() - began
    errors = ((decoded - pixels) / 2).square().flatten(1).mean(1)
    edges = sum((decoded.diff(dim=d) - pixels.diff(dim=d)).abs().mean() for d in (2, 3)) / 4
    if options.grid:
        chosen = torch.linspace(0, len(pixels) - 1, 12).long()
        rows = [
            [Image.fromarray(((one.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()) for one in pair]
            for pair in zip(pixels[chosen], decoded[chosen], strict=True)
        ]
        image_grid(options.grid, rows, (), ("original", "reconstruction"))
    return {
        "images": len(pixels),
        "PSNR": float(-10 * errors.mean().log10()),
        "edge error": float(edges),
        "ms per decoded image": 1000 * seconds / len(pixels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("encoders", "vae", "policy"))
    parser.add_argument("--only", nargs="*", choices=ENCODERS, default=ENCODERS, help="some of the encoders")
    parser.add_argument("--policy", default=EMBEDDED.policy.path)
    parser.add_argument("--grid", type=Path, help="PNG of reconstructions, or of the policy's images")
    parser.add_argument("--subfolder", default="vae", help="of the autoencoder in the folder --policy")
    parser.add_argument("--samples", type=int, default=CANDIDATES, help=f"a multiple of {CANDIDATES}")
    parser.add_argument("--steps", type=int, default=EMBEDDED.evaluation.steps)
    parser.add_argument("--seed", type=int, default=12)
    options = parser.parse_args()
    if options.samples % CANDIDATES:
        parser.error(f"--samples must be a multiple of {CANDIDATES}")
    sets = [
        draw(options.samples, coloured=coloured, held_out=held_out, seed=options.seed)
        for coloured, held_out in ((False, False), (True, False), (True, True))
    ]
    measure = {"encoders": measure_encoders, "vae": measure_vae, "policy": measure_policy}[options.what]
    results = measure(options, *sets)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
