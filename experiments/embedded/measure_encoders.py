"""Measure the embedded encoders, through the rewards that use them, on pictures kept from training.

    python experiments/embedded/measure_encoders.py --out experiments/embedded/encoders.json

Identity: is a held-out subject's reference nearest to its own picture, of `CANDIDATES`? Prompt: is
the true word of each kind the best one, when all others of that kind stand in its place? Both for
held-out subjects; prompts for known and for held-out combinations. `--only` measures some.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from encoder_data import CHOICES, Saying
from PIL import Image
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.embedded.scenes import POSITIONS, Scene, draw_pair, draw_wish
from customized_grpo.embedded.subjects import draw_subject
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import build_reward

CANDIDATES = 96
ENCODERS = ("reward-identity", "judge-identity", "reward-prompt", "judge-prompt")
Results = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A held-out subject, what is asked of it, and both pictures."""

    saying: Saying
    reference: Scene
    target: Scene

    def pair(self, key: str) -> Pair:
        mask = Image.fromarray(self.reference.mask.astype(np.uint8) * 255)
        return Pair(key, self.saying.text, (Image.fromarray(self.reference.image),), (mask,))


def draw(count: int, *, coloured: bool, held_out: bool, seed: int) -> list[Sample]:
    """Samples of held-out subjects; `held_out` says whether the wishes' combinations are, too."""
    rng = np.random.default_rng([seed, count, coloured, held_out])
    samples = []
    while len(samples) < count:
        subject, wish = draw_subject(rng, held_out=True), draw_wish(rng, held_out=held_out)
        # The position is always said, so that every kind can be asked for.
        wish = dataclasses.replace(wish, position=wish.position or str(rng.choice(list(POSITIONS))))
        if coloured or wish.colour is None:
            samples.append(Sample(Saying(subject.word, wish), *draw_pair(subject, wish, rng)))
    return samples


def tensors(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).float() / 255


def told(prefix: str, scores: Tensor) -> Results:
    return {f"{prefix} mean": float(scores.mean()), f"{prefix} std": float(scores.std())}


def identity(path: str, samples: list[Sample], coloured: list[Sample]) -> dict[str, Results]:
    results = {}
    for way, segmented in (("segmented reference", True), ("plain reference", False)):
        options = {"segmented": segmented}
        config = RewardConfig(kind="dino", role="identity", path=path, options=options)
        reward = build_reward(config, "cpu")
        pairs = [sample.pair(str(i)) for i, sample in enumerate(samples)]
        targets = tensors([sample.target for sample in samples])
        references = tensors([sample.reference for sample in samples])
        true, other, first = [], [], []
        for start in range(0, len(samples), CANDIDATES):
            among = slice(start, start + CANDIDATES)
            # Row i: the scores of all these pictures against reference i.
            table = torch.stack([reward(targets[among], [pair] * CANDIDATES) for pair in pairs[among]])
            true.append(table.diagonal())
            other.append(table[~torch.eye(CANDIDATES, dtype=torch.bool)])
            first.append(table.argmax(1) == torch.arange(CANDIDATES))
        recoloured = reward(
            tensors([sample.target for sample in coloured]),
            [sample.pair(f"coloured {i}") for i, sample in enumerate(coloured)],
        )
        results[way] = {
            f"top-1 of {CANDIDATES}": float(torch.cat(first).float().mean()),
            **told("true picture", torch.cat(true)),
            **told("copied reference", reward(references, pairs)),
            **told("in another colour", recoloured),
            **told("wrong subject", torch.cat(other)),
        }
    return results


def prompt(path: str, known: list[Sample], held_out: list[Sample]) -> dict[str, Results]:
    reward = build_reward(RewardConfig(kind="clip", role="prompt", path=path), "cpu")
    return {
        "known combinations": swaps(reward, known),
        "held-out combinations": swaps(reward, held_out),
    }


def swaps(reward: Reward, samples: list[Sample]) -> Results:
    targets = tensors([sample.target for sample in samples])
    references = tensors([sample.reference for sample in samples])
    pairs = [sample.pair(str(i)) for i, sample in enumerate(samples)]
    true = reward(targets, pairs)
    results = {
        **told("true prompt", true),
        **told("copied reference", reward(references, pairs)),
        **told("wrong prompt", reward(targets, pairs[1:] + pairs[:1])),
    }
    all_right = torch.ones(len(samples), dtype=torch.bool)
    for kind, choices in CHOICES.items():
        choices = [choice for choice in choices if not (kind == "position" and choice is None)]
        scores = torch.stack(
            [reward(targets, [swapped(sample, kind, choice) for sample in samples]) for choice in choices],
            dim=1,
        )
        answers = [getattr(s.saying.wish, kind, s.saying.word) for s in samples]
        labels = torch.tensor([choices.index(answer) for answer in answers])
        wrong = scores[torch.nn.functional.one_hot(labels, len(choices)) == 0]
        right = scores.argmax(1) == labels
        if kind != "word":
            all_right &= right
        results[f"{kind}, 1 of {len(choices)}"] = float(right.float().mean())
        results[f"{kind}, loss by a wrong one"] = float(true.mean() - wrong.mean())
    results["all four"] = float(all_right.float().mean())
    return results


def swapped(sample: Sample, kind: str, choice: str | None) -> Pair:
    text = sample.saying.swapped(kind, choice).text
    return dataclasses.replace(sample.pair(text), prompt=text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; kept where --only")
    parser.add_argument("--only", nargs="*", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--samples", type=int, default=2 * CANDIDATES)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    if options.samples % CANDIDATES:
        parser.error(f"--samples must be a multiple of {CANDIDATES}")
    bare = draw(options.samples, coloured=False, held_out=False, seed=options.seed)
    known = draw(options.samples, coloured=True, held_out=False, seed=options.seed)
    unseen = draw(options.samples, coloured=True, held_out=True, seed=options.seed)
    recoloured = [sample for sample in known if sample.saying.wish.colour is not None]
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    for name in options.only:
        path = f"embedded/{name}"
        if name.endswith("identity"):
            results[name] = identity(path, bare, recoloured)
        else:
            results[name] = prompt(path, known, unseen)
        results[name] = {
            way: {key: round(value, 3) for key, value in values.items()} for way, values in results[name].items()
        }
        print(name, json.dumps(results[name], indent=2), flush=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
