"""Reward of a vision-language model, Qwen3-VL, in this process: the rubrics of `vlm`, without a server."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from customized_grpo.protocols import Pair
from customized_grpo.rewards.base import Count
from customized_grpo.rewards.loading import LOADING_ERRORS, load_model, load_tokenizer, unloadable, without_tokens
from customized_grpo.rewards.vlm import FORMS, LEAST_MASS, RubricReward
from customized_grpo.utils.hub import resolve
from customized_grpo.utils.pixels import to_image

_IMAGE, _PAD = "<|vision_start|>{}<|vision_end|>", "<|image_pad|>"
#: Qwen's chat format, with an empty turn of the model to be continued.
_CHAT = "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
_LEAST_PIXELS = 64 * 64  # of an image; smaller ones are enlarged


class VlmLocal(RubricReward):
    """Score, 0 to 4, that a Qwen3-VL Instruct model gives an image for identity or for prompt following.

    It is the expectation over the digits 0 to 4 by the probabilities of the first token of the answer, in one forward
    pass. An image has the score NaN if these digits have less than a tenth of the probability. The instructions are
    those of `Vlm` with `answer: logprobs`.

    Args:
        path: Hub id or folder of the model.
        role: identity or prompt; in a config, the reward's `role`.
        name: Name in logs, tables and figures.
        device: Device of the model. Default: the accelerator, if there is one.
        instruction: Replaces the rubric.
        question: Replaces the question; `{prompt}` and `{subject}` stand for those of the pair.
        segmented: Show the reference's subject on white, if it has a mask.
        pixels: Largest number of pixels of an image; larger ones are reduced. 1024 pixels are one token.
        dtype: Precision of the model.
        batch_size: Images per forward pass.
        revision: Revision of `path` on the hub.

    Raises:
        RewardError: The model cannot be loaded or is of another type, or an option cannot be used.
    """

    kind: ClassVar[str] = "vlm-local"
    default_path: ClassVar[str] = "Qwen/Qwen3-VL-8B-Instruct"

    def __init__(
        self,
        path: str | None = None,
        *,
        role: str,
        name: str = "vlm-local",
        device: torch.device | str | None = None,
        instruction: str | None = None,
        question: str | None = None,
        segmented: bool = True,
        pixels: Count = 512 * 512,
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        batch_size: Count = 8,
        revision: str = "main",
    ) -> None:
        super().__init__(name, device, role, instruction, question, segmented)
        self._pixels, self._batch_size = pixels, batch_size
        where = str(path or self.default_path)
        precision: torch.dtype = getattr(torch, dtype)
        model = load_model(AutoModelForImageTextToText, ("qwen3_vl",), where, revision, name, dtype=precision)
        self._tokenizer = load_tokenizer(where, revision, name, model.config.text_config.vocab_size)
        try:
            self._processor = Qwen2VLImageProcessorPil.from_pretrained(resolve(where), revision=revision)
        except LOADING_ERRORS as error:
            raise unloadable(where, name, error) from error
        self._digits = self._tokenizer.convert_tokens_to_ids(list("01234"))
        self.model = model.to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,), 0 to 4 or NaN, of images (B, 3, H, W) in [0, 1].

        Raises:
            RewardError: For identity, a pair has no references.
        """
        size = self._batch_size
        return torch.cat([self._scores(images[i : i + size], pairs[i : i + size]) for i in range(0, len(images), size)])

    def _scores(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        shown = [[*self._references(pair), to_image(image)] for image, pair in zip(images, pairs, strict=True)]
        seen = self._processor(
            [image for row in shown for image in row],
            size={"shortest_edge": min(_LEAST_PIXELS, self._pixels), "longest_edge": self._pixels},
            return_tensors="pt",
        )
        counts = iter((seen["image_grid_thw"].prod(1) // self._processor.merge_size**2).tolist())
        texts = [self._text([next(counts) for _ in row], pair) for row, pair in zip(shown, pairs, strict=True)]
        tokens = self._tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(self._device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        states = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
            pixel_values=seen["pixel_values"].to(self._device),
            image_grid_thw=seen["image_grid_thw"].to(self._device),
            use_cache=False,
        ).last_hidden_state
        last = states[torch.arange(len(ids), device=self._device), mask.sum(1) - 1]
        digits = self.model.lm_head(last).float().softmax(-1)[:, self._digits]
        mass = digits.sum(1)
        scores: Tensor = (digits * torch.arange(5, device=self._device)).sum(1) / mass
        return scores.masked_fill(mass < LEAST_MASS, torch.nan)

    def _text(self, counts: Sequence[int], pair: Pair) -> str:
        """Return the chat about images of these numbers of tokens, the generated one last."""
        *references, image = (_IMAGE.format(_PAD * count) for count in counts)
        parts = [f"Reference {i}:{reference}" for i, reference in enumerate(references, start=1)]
        question = self._asked(*(without_tokens(text, self._tokenizer) for text in (pair.prompt, pair.subject or "")))
        parts += [f"Generated picture:{image}", f"{question}\n\n{FORMS['logprobs']}"]
        return _CHAT.format(instruction=self._instruction, content="".join(parts))
