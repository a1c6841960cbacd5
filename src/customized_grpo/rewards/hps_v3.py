"""HPS v3: human preference for an image and its prompt, by a large vision-language model.

The question, the head's shape and the number of pixels are those of training, as the authors publish them under the MIT
licence (github.com/MizzenAI/HPSv3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import cached_file

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward, Count
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.loading import LOADING_ERRORS, check_missing, check_type, load_tokenizer, without_tokens
from customized_grpo.utils.hub import loadable, resolve
from customized_grpo.utils.named import error_text

FILE = "HPSv3.safetensors"
REWARD_TOKEN = "<|Reward|>"  # noqa: S105, a token of text
_IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105, a token of text
_HEAD = "rm_head."
_PIXELS = 256 * 28 * 28  # to about which images of any shape are resized

#: Exactly that of training, with double spaces, in Qwen2-VL's chat format.
_QUESTION = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")


class HpsV3(BuiltinReward):
    """Human Preference Score v3 (arXiv 2508.03789): the mean of the preference that Qwen2-VL 7B with a head predicts.

    Scores have no bounds and no unit: only differences count. Published means of subject-driven generators on
    DreamBench lie between 3 and 8.4. The model takes 16 GB in bfloat16; the head works in float32.

    Args:
        path: Hub id, folder or file of HPSv3.safetensors.
        name: Name in logs, tables and figures.
        device: Device of the model. Default: the accelerator, if there is one.
        base: Qwen2-VL, of which configuration, tokenizer and image processor are used, and no weights.
        dtype: Precision of the model.
        batch_size: Images per forward pass.
        revision: Revision of `path` on the hub.
        base_revision: Revision of `base` on the hub.

    Raises:
        RewardError: A file is missing, or the weights do not fit the base.
    """

    kind: ClassVar[str] = "hps-v3"
    needs: ClassVar[tuple[Need, ...]] = ("prompt",)

    def __init__(
        self,
        path: str | Path = "MizzenAI/HPSv3",
        *,
        name: str = "hps-v3",
        device: torch.device | str | None = None,
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        batch_size: Count = 8,
        revision: str = "main",
        base_revision: str = "main",
    ) -> None:
        super().__init__(name, device)
        self._batch_size = batch_size
        config = check_type(base, ("qwen2_vl",), base_revision, name)
        try:
            self._processor = Qwen2VLImageProcessorPil.from_pretrained(resolve(base), revision=base_revision)
        except LOADING_ERRORS as error:
            raise RewardError(
                f"reward {name!r}: {base!r} cannot be read as base ({error_text(error)}); "
                "give a folder or hub id of Qwen2-VL"
            ) from error
        self._tokenizer = load_tokenizer(base, base_revision, name, config.text_config.vocab_size)
        self._tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self._reward = self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        path = str(path)
        weights = _weights(path, revision, name)
        head = {key.removeprefix(_HEAD): weights.pop(key).float() for key in sorted(weights) if key.startswith(_HEAD)}
        rows = next((len(value) for key, value in weights.items() if key.endswith("embed_tokens.weight")), 0)
        if self._reward >= rows:
            raise RewardError(
                f"reward {name!r}: {path!r} has {rows} tokens, and its base's tokenizer {self._reward + 1}; give the "
                "base that it was trained from"
            )
        config.text_config.vocab_size = rows  # the published table ends with the reward's own token
        try:
            # hidden -> 1024 -> 16 -> (mean, variance) in the published model.
            first, second, last = (nn.Linear(*head[f"{layer}.weight"].shape[::-1]) for layer in (0, 3, 5))
            self.head = nn.Sequential(first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), last)
            self.head.load_state_dict(head)
            # transformers maps the published names of the weights, which are older than its own.
            whole, report = Qwen2VLForConditionalGeneration.from_pretrained(
                None, config=config, state_dict=weights, dtype=getattr(torch, dtype), output_loading_info=True
            )
        except LOADING_ERRORS as error:
            raise RewardError(
                f"reward {name!r}: the weights of {path!r} are not those of HPS v3 for base ({error_text(error)}); "
                "give the published weights, and the base that they were trained from"
            ) from error
        check_missing(set(report["missing_keys"]) - {"lm_head.weight"}, path, name)
        self.head.eval().requires_grad_(False).to(self._device)
        self.model = whole.model.eval().requires_grad_(False).to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,), without bounds, of images (B, 3, H, W) in [0, 1]."""
        size = self._batch_size
        return torch.cat([self._scores(images[i : i + size], pairs[i : i + size]) for i in range(0, len(images), size)])

    def _scores(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        pixels = (images.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        seen = self._processor(
            list(pixels.numpy()),
            size={"shortest_edge": _PIXELS, "longest_edge": _PIXELS},
            input_data_format="channels_first",
            return_tensors="pt",
        )
        count = int(seen["image_grid_thw"][0].prod()) // self._processor.merge_size**2
        texts = [self._question(pair.prompt, count) for pair in pairs]
        tokens = self._tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(self._device)
        ids: Tensor = tokens["input_ids"]
        # The authors number the image's tokens like those of text, in training and inference: no M-RoPE.
        places = torch.arange(ids.shape[1], device=self._device).expand(3, *ids.shape)
        states = self.model(
            input_ids=ids,
            attention_mask=tokens["attention_mask"],
            position_ids=places,
            pixel_values=seen["pixel_values"].to(self._device),
            image_grid_thw=seen["image_grid_thw"].to(self._device),
            use_cache=False,
        ).last_hidden_state
        rows, columns = (ids == self._reward).nonzero(as_tuple=True)
        return self.head(states[rows, columns].float())[:, 0]

    def _question(self, prompt: str, image_tokens: int) -> str:
        return _QUESTION.format(picture=_IMAGE_TOKEN * image_tokens, prompt=without_tokens(prompt, self._tokenizer))


def _weights(path: str, revision: str, name: str) -> dict[str, Tensor]:
    try:
        file = path if path.endswith(".safetensors") else cached_file(loadable(path), FILE, revision=revision)
        return load_file(file)
    except LOADING_ERRORS as error:
        raise RewardError(
            f"reward {name!r}: no weights could be read from {path!r} ({error_text(error)}); "
            f"give a folder or hub id with {FILE}, or that file"
        ) from error
