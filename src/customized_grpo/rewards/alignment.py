"""Prompt rewards of two encoders: CLIP, SigLIP, PickScore and HPS v2."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, CLIPModel

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward, Count
from customized_grpo.rewards.cache import LruCache
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.frame import open_frame
from customized_grpo.rewards.loading import load_model, load_tokenizer


class AlignmentReward(BuiltinReward):
    """Cosine of the image and text features of one model, times `scale`.

    Models work in float32, whatever the precision of their weights. Prompts longer than the model's context are cut.

    Args:
        path: Hub id or folder of the model.
        name: Name in logs, tables and figures.
        device: Device of the model. Default: the accelerator, if there is one.
        processor: Hub id or folder of tokenizer and image processor, if they are not with the model.
        batch_size: Images per forward pass.
        cache_size: Number of prompts whose features are cached.
        revision: Revision of `path` on the hub.

    Raises:
        RewardError: The model cannot be loaded or is of another type.
    """

    kind: ClassVar[str]
    default_path: ClassVar[str | None] = None
    #: Used with the default path only.
    default_processor: ClassVar[str | None] = None
    architecture: ClassVar[Any] = CLIPModel
    types: ClassVar[Collection[str]] = ("clip",)
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
        super().__init__(name, device)
        self._batch_size = batch_size
        self._cache: LruCache[str, Tensor] = LruCache(cache_size)
        processor = processor or (self.default_processor if path is None else None)
        where = self._where(path)
        model = load_model(self.architecture, self.types, where, revision, self.name)
        beside = (processor, "main") if processor else (where, revision)
        self.frame = open_frame(*beside, self.name)
        self._tokenizer = load_tokenizer(*beside, self.name, model.config.text_config.vocab_size)
        self.model = model.to(self._device)

    def _where(self, path: str | Path | None) -> str:
        """Return the hub id or folder to load."""
        return str(path or self.default_path)

    @property
    def scale(self) -> float:
        """Score of equal features."""
        return 100.0

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,), -scale to scale, of images (B, 3, H, W) in [0, 1]."""
        prompts = [pair.prompt for pair in pairs]
        texts = self._cache.fill(prompts, self._text_features)
        batches = torch.split(self.frame(images.to(self._device)), self._batch_size)
        features = torch.cat([self.model.get_image_features(pixel_values=batch).pooler_output for batch in batches])
        seen = functional.normalize(features.float(), dim=-1)
        return self.scale * (seen * torch.stack([texts[prompt] for prompt in prompts])).sum(-1)

    def _tokens(self, prompt: str) -> dict[str, Tensor]:
        """Return the text encoder's arguments."""
        tokens: dict[str, Tensor] = self._tokenizer(
            [prompt],
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._device)
        return tokens

    def prompt_tokens(self, prompts: Sequence[str]) -> tuple[list[int], int]:
        """Return the number of tokens of each prompt, and the number that the text encoder reads."""
        tokens = self._tokenizer(list(prompts), verbose=False)["input_ids"]
        return list(map(len, tokens)), int(self.model.config.text_config.max_position_embeddings)

    def _text_features(self, prompt: str) -> Tensor:
        """Return the unit vector (width,) of a prompt."""
        features = self.model.get_text_features(**self._tokens(prompt)).pooler_output.float()
        return functional.normalize(features, dim=-1)[0]


class Clip(AlignmentReward):
    """CLIPScore without its factor 2.5 (arXiv 2104.08718): -100 to 100, 20 to 35 for photos and their prompts."""

    kind = "clip"
    default_path = "openai/clip-vit-large-patch14"


class Siglip(AlignmentReward):
    """Cosine of the features of SigLIP or SigLIP 2 (arXiv 2502.14786), times 100; lower than CLIP's.

    The model's bias and sigmoid are omitted: they would flatten the differences within a group.
    """

    kind = "siglip"
    default_path = "google/siglip2-base-patch16-224"
    architecture = AutoModel
    types = ("siglip",)

    def _tokens(self, prompt: str) -> dict[str, Tensor]:
        # Trained on lower case, and on padding without an attention mask.
        return {"input_ids": super()._tokens(prompt.lower())["input_ids"]}


class PickScore(AlignmentReward):
    """PickScore (arXiv 2305.01569): logit of a human choice, around 20. A difference of 1 stands for odds of e to 1."""

    kind = "pickscore"
    default_path = "yuvalkirstain/PickScore_v1"
    default_processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    @property
    def scale(self) -> float:
        """The model's own scale, 100 in the published model."""
        return float(self.model.logit_scale.exp())


class HpsV2(AlignmentReward):
    """Human Preference Score v2 or v2.1 (arXiv 2306.09341): -100 to 100, in practice 20 to 35.

    `path` is the folder that `cgrpo convert-hps` writes: the authors publish pickles, which no reward loads.
    """

    kind = "hps-v2"

    def _where(self, path: str | Path | None) -> str:
        if path in (None, "xswu/HPSv2"):
            raise RewardError(
                f"reward {self.name!r}: xswu/HPSv2 contains pickles, which are never loaded; convert its file once, by "
                "cgrpo convert-hps HPS_v2.1_compressed.pt --out FOLDER, and give that folder as path"
            )
        return str(path)
