"""Prompt following by CLIP: does the picture show what the prompt says?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel

from customized_grpo.models import resolve
from customized_grpo.named import told
from customized_grpo.protocols import Pair
from customized_grpo.rewards.cache import FeatureCache
from customized_grpo.rewards.checkpoint import load_judge
from customized_grpo.rewards.errors import RewardError


class ClipReward:
    """Cosine of CLIP's image and text features, times 100 (CLIPScore without its factor 2.5, arXiv
    2104.08718).

    Text features are computed once per prompt and kept, at most `cache_size` of them; prompts
    longer than the model's context are cut, as CLIP does. Weights stored in any precision work in
    float32; no gradient.
    """

    def __init__(
        self,
        path: str = "openai/clip-vit-large-patch14",
        *,
        name: str = "clip",
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        cache_size: int = 4096,
        revision: str = "main",
    ) -> None:
        self.name = name
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._cache: FeatureCache[str] = FeatureCache(cache_size)
        model, self.frame = load_judge(CLIPModel, ("clip",), path, revision, name)
        self._tokenizer = _tokenizer(path, revision, name, model.config.text_config.vocab_size)
        self.model = model.to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,), -100 to 100, of pictures (B, 3, H, W) in [0, 1]."""
        prompts = [pair.prompt for pair in pairs]
        texts = self._cache.get(prompts, self._text_features)
        pixels = torch.split(self.frame(images.to(self._device)), self._batch_size)
        features = torch.cat([self.model.get_image_features(pixel_values=part).pooler_output for part in pixels])
        pictures = functional.normalize(features.float(), dim=-1)
        return 100 * (pictures * torch.stack([texts[prompt] for prompt in prompts])).sum(-1)

    def _text_features(self, prompts: list[str]) -> list[Tensor]:
        """Unit vectors (width,) of prompts, in batches."""
        features = []
        for start in range(0, len(prompts), self._batch_size):
            tokens = self._tokenizer(
                prompts[start : start + self._batch_size],
                # Equal lengths, so that a prompt's features do not depend on its neighbours.
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._device)
            features.append(self.model.get_text_features(**tokens).pooler_output.float())
        return list(functional.normalize(torch.cat(features), dim=-1))


def _tokenizer(path: str, revision: str, name: str, vocabulary: int) -> Any:
    """The folder's tokenizer. transformers makes an empty one where files are missing: RewardError, as for others."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(path), revision=revision)
        words = len(tokenizer)
    except (OSError, ValueError, KeyError) as error:
        raise RewardError(
            f"reward {name!r}: {path!r} has no tokenizer ({told(error)}); give a folder or hub id with its files"
        ) from error
    if not len(tokenizer.all_special_tokens) < words <= vocabulary:
        raise RewardError(
            f"reward {name!r}: {path!r} has no tokenizer of its model's own: {words} tokens where the model has "
            f"{vocabulary}; give a folder or hub id with its files"
        )
    return tokenizer
