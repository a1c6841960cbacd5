"""What judges of prompt following by two encoders share: texts encoded once, pictures in batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward
from customized_grpo.rewards.cache import FeatureCache
from customized_grpo.rewards.checkpoint import load_judge, load_tokenizer
from customized_grpo.rewards.frame import AnyFrame, open_frame
from customized_grpo.rewards.options import Count
from customized_grpo.utils.devices import device_of


class AlignmentReward(BuiltinReward):
    """Cosine of the image and text features of one model, times its `scale`.

    Text features are computed once per prompt and kept, at most `cache_size` of them; prompts longer than the
    model's context are cut. `processor` is the hub id or folder of tokenizer and image processor where they are not
    with the model. Weights stored in any precision work in float32; no gradient.
    """

    kind: ClassVar[str]
    default_path: ClassVar[str]
    #: Of the default path alone; a path that is given has its own, or `processor` says where.
    default_processor: ClassVar[str | None] = None
    architecture: ClassVar[Any]
    types: ClassVar[Collection[str]]
    needs: ClassVar[tuple[Need, ...]] = ("prompt",)

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        name: str | None = None,
        device: torch.device | str | None = None,
        processor: str | None = None,
        batch_size: Count = 64,
        cache_size: int = 4096,
        revision: str = "main",
    ) -> None:
        self.name = name or self.kind
        self._batch_size = batch_size
        self._device = device_of(device, f"reward {self.name!r}: device")
        self._cache: FeatureCache[str] = FeatureCache(cache_size)
        processor = processor or (self.default_processor if path is None else None)
        where = self._where(None if path is None else str(path))
        frame: AnyFrame
        model, frame = load_judge(
            self.architecture, self.types, where, revision, self.name, framed=open_frame, processor=processor
        )
        self.frame = frame
        words = model.config.text_config.vocab_size
        self._tokenizer = load_tokenizer(processor or where, "main" if processor else revision, self.name, words)
        self.model = model.to(self._device)

    def _where(self, path: str | None) -> str:
        """The hub id or folder to load."""
        return path or self.default_path

    @property
    def scale(self) -> float:
        """The score of equal features."""
        return 100.0

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,), -scale to scale, of pictures (B, 3, H, W) in [0, 1]."""
        prompts = [pair.prompt for pair in pairs]
        texts = self._cache.get(prompts, self._text_features)
        inputs = self.frame.inputs(images.to(self._device))
        batches = zip(*(torch.split(rows, self._batch_size) for rows in inputs.values()), strict=True)
        features = torch.cat(
            [self.model.get_image_features(**dict(zip(inputs, batch, strict=True))).pooler_output for batch in batches]
        )
        pictures = functional.normalize(features.float(), dim=-1)
        return self.scale * (pictures * torch.stack([texts[prompt] for prompt in prompts])).sum(-1)

    def _tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        """The text encoder's arguments."""
        tokens: dict[str, Tensor] = self._tokenizer(
            prompts,
            # Equal lengths, so that a prompt's features do not depend on its neighbours.
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._device)
        return tokens

    def _text_features(self, prompt: str) -> Tensor:
        """Unit vector (width,) of a prompt."""
        features = self.model.get_text_features(**self._tokens([prompt])).pooler_output.float()
        return functional.normalize(features, dim=-1)[0]
