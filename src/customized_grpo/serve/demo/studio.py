"""What the page asks for: pictures of a subject by the base and the tuned model, from the same noise, and scores."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from customized_grpo.config import Config
from customized_grpo.evaluation.generate import generate
from customized_grpo.protocols import Pair
from customized_grpo.rewards import score
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.parts import build_judges, policy_with_adapter
from customized_grpo.utils.pixels import to_tensor
from customized_grpo.utils.prompts import has_letters

MOST_REFERENCES, MOST_IMAGES, MOST_STEPS, MOST_WORDS, MOST_SEED = 4, 4, 100, 1000, 2**31 - 1


class AskError(ValueError):
    """What cannot be drawn; its text is one line that says what to change."""


@dataclass(frozen=True)
class Ask:
    """What to draw. `masks` are those of the first references, 255 on the subject; there may be fewer of them."""

    prompt: str
    references: Sequence[Image.Image]
    masks: Sequence[Image.Image] = ()
    seed: int = 0
    steps: int = 10
    images: int = 1

    def check(self) -> None:
        """Raises AskError where a value is missing or out of bounds."""
        if not self.references:
            raise AskError("There is no photo: drop one of the subject.")
        if len(self.references) > MOST_REFERENCES:
            raise AskError(f"{len(self.references)} photos are too many: give at most {MOST_REFERENCES}.")
        if len(self.masks) > len(self.references):
            raise AskError("There are more masks than photos: give one for each photo at most.")
        if not has_letters(self.prompt):
            raise AskError("The prompt is empty: say what the picture should show.")
        if len(self.prompt) > MOST_WORDS:
            raise AskError(f"The prompt has {len(self.prompt)} characters: give at most {MOST_WORDS}.")
        bounds = {"steps": (self.steps, 1, MOST_STEPS), "images": (self.images, 1, MOST_IMAGES),
                  "seed": (self.seed, 0, MOST_SEED)}  # fmt: skip
        for name, (value, least, most) in bounds.items():
            if not least <= value <= most:
                raise AskError(f"{name} is {value}: give {least} to {most}.")


@dataclass(frozen=True)
class Column:
    """One model's pictures, and the scores of each by the judge's name; a missing score is NaN."""

    name: str
    pictures: list[Image.Image]
    scores: dict[str, list[float]]


class Studio:
    """A policy with its judges; draws one thing at a time, whoever asks.

    Args:
        config: the policy, the rewards and monitors.
        run: whose LoRA, or tuned weights, stand beside the base model; the base model alone where it is None.

    Raises:
        ConfigError, ModelError, RewardError: a part cannot be opened.
    """

    def __init__(self, config: Config, run: Path | None) -> None:
        self.policy = policy_with_adapter(config, run)
        self.steps = config.evaluation.steps
        self.model = config.policy.path
        self.tuned = run is not None
        self.guards = {reward_name(monitor) for monitor in config.evaluation.monitors if monitor.role == "guard"}
        self._judges = build_judges(config, self.policy.device).all
        self._lock = threading.Lock()

    def draw(self, ask: Ask) -> list[Column]:
        """The base model's column, and the tuned one's where there is a run.

        Raises:
            AskError: see `Ask.check`.
            ModelError, RewardError: the model refuses the photos, or a judge fails.
        """
        ask.check()
        masks = [*ask.masks, *[None] * (len(ask.references) - len(ask.masks))]
        pair = Pair(ask.prompt, ask.prompt, tuple(ask.references), tuple(masks))
        with self._lock:
            with self.policy.reference():
                columns = [self._column("base", ask, pair)]
            if self.tuned:
                columns.append(self._column("tuned", ask, pair))
        return columns

    @torch.no_grad()
    def _column(self, name: str, ask: Ask, pair: Pair) -> Column:
        pictures = generate(self.policy, ask.prompt, ask.references, steps=ask.steps, seed=ask.seed, images=ask.images)
        pixels = torch.stack([to_tensor(picture) for picture in pictures])
        scores = score(self._judges, pixels.to(self.policy.device), [pair] * len(pictures))
        return Column(name, pictures, {judge: values.tolist() for judge, values in scores.items()})
