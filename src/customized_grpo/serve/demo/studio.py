"""Images of a subject by the base and the tuned model, from the same noise, with scores."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from customized_grpo.config import Config
from customized_grpo.data.errors import DataError
from customized_grpo.data.image_files import load
from customized_grpo.evaluation.generate import generate
from customized_grpo.protocols import Pair
from customized_grpo.rewards import score
from customized_grpo.trainer.parts import build_scorers, policy_with_adapter
from customized_grpo.utils.pixels import encoded, to_tensor
from customized_grpo.utils.prompts import has_letters
from customized_grpo.utils.records import write_bytes

MOST_PHOTOS, MOST_LETTERS = 4, 1000
MOST_BYTES = 20 * 2**20  #: of one file; `data.image_files` limits the pixels


class AskError(ValueError):
    """A request that cannot be answered. The message is one line with a remedy."""


@dataclass(frozen=True)
class Column:
    """One model's images, and their scores by the reward's name; a missing score is NaN."""

    name: str
    images: list[Image.Image]
    scores: dict[str, list[float]]


class Studio:
    """A policy with its rewards and monitors; the LoRA or tuned weights of a `run` are compared with the base model."""

    def __init__(self, config: Config, run: Path | None) -> None:
        self.policy = policy_with_adapter(config, run)
        self.steps = config.evaluation.steps
        self.model = config.policy.path
        self.tuned = run is not None
        self._scorers = build_scorers(config, self.policy.device)
        self._lock = threading.Lock()

    def generate_columns(
        self, prompt: str, photos: Sequence[Image.Image], *, seed: int, steps: int, images: int
    ) -> list[Column]:
        """Generate and score images: a column of the base model, and one of the tuned model if there is a run.

        Raises AskError without a photo or prompt or with too much of one, ModelError or RewardError if a model fails.
        """
        if not photos:
            raise AskError("There is no photo: add one of the subject.")
        if not has_letters(prompt):
            raise AskError("The prompt is empty: describe the image.")
        if len(prompt) > MOST_LETTERS:
            raise AskError(f"The prompt has {len(prompt)} characters: use at most {MOST_LETTERS}.")
        pair = Pair(prompt, prompt, tuple(photos), (None,) * len(photos))
        with self._lock, torch.no_grad():

            def column(name: str) -> Column:
                found = generate(self.policy, prompt, photos, steps=steps, seed=seed, images=images)
                pixels = torch.stack([to_tensor(image) for image in found]).to(self.policy.device)
                scores = score(self._scorers, pixels, [pair] * images)
                return Column(name, found, {reward: values.tolist() for reward, values in scores.items()})

            with self.policy.reference():
                columns = [column("base")]
            return [*columns, column("tuned")] if self.tuned else columns


def read_photos(paths: Sequence[Path]) -> list[Image.Image]:
    """Decode uploaded photos, and replace their files by PNG files without metadata, under the same names.

    Raises AskError, and removes all files, if there are too many photos, or one is too large, damaged or no image.
    """
    try:
        if len(paths) > MOST_PHOTOS:
            raise AskError(f"{len(paths)} photos are too many: use at most {MOST_PHOTOS}.")
        photos = [_read(path) for path in paths]
    except AskError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    for path, photo in zip(paths, photos, strict=True):
        plain = photo.copy()
        plain.info.clear()
        write_bytes(path, encoded(plain, compress_level=1))  # in one move: the page may be loading the file
    return photos


def _read(path: Path) -> Image.Image:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise AskError(f"{path.name}: more than {MOST_BYTES // 2**20} MB; reduce it")
        return load(path)
    except OSError as error:
        raise AskError(f"{path.name}: was removed; add it again") from error
    except DataError as error:
        raise AskError(str(error).replace(str(path), path.name)) from error
