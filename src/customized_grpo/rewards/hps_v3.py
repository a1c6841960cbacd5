"""HPS v3: which picture would people prefer for the prompt, by a large vision-language model?

The question, the head's shape and the number of pixels are those that the model was trained with, as its authors
publish them under the MIT licence (github.com/MizzenAI/HPSv3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import cached_file

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.base import BuiltinReward
from customized_grpo.rewards.checkpoint import check_type, load_tokenizer
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.options import Count
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.hub import resolve
from customized_grpo.utils.named import told

FILE = "HPSv3.safetensors"
REWARD_TOKEN = "<|Reward|>"  # noqa: S105, a token of text
_IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105, a token of text
_HEAD = "rm_head."
#: Pictures are brought to about this many pixels, whatever their shape.
_PIXELS = 256 * 28 * 28
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# To the letter, double spaces and all: the model has seen no other question. Qwen2-VL's chat format around it.
_QUESTION = """<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
<|vision_start|>{picture}<|vision_end|>
You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score \
to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the \
best.\x20

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:
- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal \
body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, \
with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements \
(e.g., hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, \
atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult \
material. If such content is present, the image quality and satisfaction score should be the lowest possible.\x20

**Text Alignment:**\x20\x20
Assess how well the image matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align with \
the textual description. The subject should match the description in terms of number, appearance, and behavior.
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the image \
adheres to this style.
- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image logically \
fit the scenario described in the prompt. The environment should support and enhance the subject without \
contradictions.
- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, accessories, \
expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable, but critical \
attributes should be preserved.
- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The \
generated content should not introduce elements that conflict with or distort the original description.
Textual prompt - {prompt}



Please provide the overall ratings of this image: <|Reward|>

END
<|im_end|>
<|im_start|>assistant
"""


class HpsV3(BuiltinReward):
    """Human Preference Score v3 (arXiv 2508.03789): the mean of the preference that Qwen2-VL 7B with a head predicts.

    No bounds and no unit: only differences tell. Published means of subject-driven generators on DreamBench lie
    between 3 and 8.4. The uncertainty that the head predicts beside it is left out. `path` is a hub id, or a folder
    or file, of HPSv3.safetensors; `base` has the configuration, tokenizer and image processor of Qwen2-VL, and no
    weight of it is read. 16 GB in bfloat16; the head works in float32.
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
        dtype: str = "bfloat16",
        batch_size: Count = 8,
        revision: str = "main",
        base_revision: str = "main",
    ) -> None:
        self.name = name
        if dtype not in _DTYPES:
            raise RewardError(f"reward {name!r}: unknown dtype {dtype!r}; give one of {', '.join(_DTYPES)}")
        self._batch_size = batch_size
        self._device = device_of(device, f"reward {name!r}: device")
        path = str(path)
        check_type(base, ("qwen2_vl",), base_revision, name)
        try:
            where = resolve(base)
            config = AutoConfig.from_pretrained(where, revision=base_revision, trust_remote_code=False)
            self._processor = Qwen2VLImageProcessorPil.from_pretrained(where, revision=base_revision)
        except (OSError, ValueError) as error:
            raise RewardError(
                f"reward {name!r}: {base!r} is no base to read ({told(error)}); give a folder or hub id of Qwen2-VL"
            ) from error
        self._tokenizer = load_tokenizer(base, base_revision, name, config.text_config.vocab_size)
        self._tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self._special = [str(token) for token in self._tokenizer.added_tokens_decoder.values()]
        self._reward = self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        weights = _weights(path, revision, name)
        head = {key.removeprefix(_HEAD): weights.pop(key) for key in sorted(weights) if key.startswith(_HEAD)}
        self.head = _head(head, path, name).to(self._device)
        self.model = _backbone(config, weights, self._reward, _DTYPES[dtype], path, name).to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,), without bounds, of pictures (B, 3, H, W) in [0, 1]."""
        scores = []
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            scores.append(self._scores(images[part], [pair.prompt for pair in pairs[part]]))
        return torch.cat(scores)

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = (images.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        seen = self._processor(
            list(pixels.numpy()),
            size={"shortest_edge": _PIXELS, "longest_edge": _PIXELS},
            input_data_format="channels_first",
            return_tensors="pt",
        )
        count = int(seen["image_grid_thw"][0].prod()) // self._processor.merge_size**2
        texts = [self._question(prompt, count) for prompt in prompts]
        tokens = self._tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(self._device)
        ids: Tensor = tokens["input_ids"]
        # The authors' own code numbers the picture's tokens like those of a text, in training as in use: not M-RoPE.
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
        scores: Tensor = self.head(states[rows, columns].float())[:, 0]
        return scores

    def _question(self, prompt: str, picture_tokens: int) -> str:
        # Nobody's prompt may end the question or bring a picture; what is left may join to another token.
        while met := [token for token in self._special if token in prompt]:
            prompt = prompt.replace(met[0], "")
        return _QUESTION.format(picture=_IMAGE_TOKEN * picture_tokens, prompt=prompt)


def _weights(path: str, revision: str, name: str) -> dict[str, Tensor]:
    try:
        file = path if path.endswith(".safetensors") else cached_file(resolve(path), FILE, revision=revision)
        weights: dict[str, Tensor] = load_file(file)
        return weights
    except Exception as error:  # safetensors has an error of its own
        raise RewardError(
            f"reward {name!r}: no weights could be read from {path!r} ({told(error)}); give a folder or hub id with "
            f"{FILE}, or that file"
        ) from error


def _head(weights: dict[str, Tensor], path: str, name: str) -> nn.Sequential:
    """hidden -> 1024 -> 16 -> (mean, variance) in the published model; the widths are the weights' own."""
    try:
        widths = [weights[f"{layer}.weight"].shape for layer in (0, 3, 5)]
        first, second, last = (nn.Linear(inside, outside) for outside, inside in widths)
        head = nn.Sequential(first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), last)
        head.load_state_dict({key: value.float() for key, value in weights.items()})
    except (KeyError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r}: {path!r} has not HPS v3's head, {_HEAD}0, {_HEAD}3 and {_HEAD}5 ({told(error)}); "
            "give the published weights"
        ) from error
    return head.eval().requires_grad_(False)


def _backbone(config: Any, weights: dict[str, Tensor], reward: int, dtype: torch.dtype, path: str, name: str) -> Any:
    """Qwen2-VL without its language head. transformers maps the published key names, older than its own."""
    rows = next((len(value) for key, value in weights.items() if key.endswith("embed_tokens.weight")), 0)
    if reward >= rows:
        raise RewardError(
            f"reward {name!r}: {path!r} has {rows} tokens, and its base's tokenizer {reward + 1}; give the base that "
            "it was trained from"
        )
    config.text_config.vocab_size = rows  # the published table ends with the reward's own token
    try:
        whole, report = Qwen2VLForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r}: the weights of {path!r} do not fit its base ({told(error)}); give the base that it "
            "was trained from"
        ) from error
    if absent := sorted(set(report["missing_keys"]) - {"lm_head.weight"}):
        raise RewardError(f"reward {name!r}: {path!r} lacks the weights {', '.join(absent[:3])}; get it again")
    return whole.model.eval().requires_grad_(False)
