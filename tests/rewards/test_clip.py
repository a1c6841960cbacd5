"""The CLIP reward against CLIP done by hand, and prompts encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.alignment import Clip

MakePair = Callable[..., Pair]


@pytest.fixture
def clip(clip_folder: Path) -> Clip:
    return Clip(str(clip_folder))


def test_is_the_cosine_of_image_and_text(clip: Clip, clip_folder: Path, make_pair: MakePair) -> None:
    model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    pair, image = make_pair("a"), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        outputs = model(pixel_values=clip.frame(image), **tokenizer([pair.prompt], return_tensors="pt"))
    expected = 100 * float(functional.cosine_similarity(outputs.image_embeds, outputs.text_embeds))
    assert float(clip(image, [pair])) == pytest.approx(expected, abs=1e-3)


def test_a_batch_scores_as_its_images_one_by_one(clip: Clip, make_pair: MakePair) -> None:
    pairs = [make_pair("a", 1), replace(make_pair("b", 2), prompt="cats"), make_pair("c", 1)]
    images = torch.rand(3, 3, 40, 56)
    together = clip(images, pairs)
    alone = torch.cat([clip(images[i : i + 1], [pairs[i]]) for i in range(3)])
    assert together.shape == (3,) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-3)


def test_prompts_are_encoded_once(clip: Clip, make_pair: MakePair) -> None:
    met: list[int] = []
    clip.model.text_model.register_forward_pre_hook(
        lambda _, __, given: met.append(len(given["input_ids"])), with_kwargs=True
    )
    a, b = make_pair("a", 1), make_pair("b", 2)
    clip(torch.rand(4, 3, 32, 32), [a, a, b, b])
    clip(torch.rand(2, 3, 32, 32), [b, replace(a, key="c")])
    assert met == [1, 1]


def test_a_prompt_beyond_the_context_is_cut(clip: Clip, make_pair: MakePair) -> None:
    long = replace(make_pair("a"), prompt="a cat in the snow " * 20)
    longer = replace(long, prompt=long.prompt * 2)
    image = torch.rand(1, 3, 32, 32)
    assert torch.allclose(clip(image, [long]), clip(image, [longer]))


def test_missing_tokenizer_and_other_models_are_refused(clip_folder: Path, dino_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        if "token" not in file.name and file.name not in {"vocab.json", "merges.txt"}:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RewardError, match=r"^reward 'prompt': .*has no tokenizer"):
        Clip(str(tmp_path), name="prompt")
    with pytest.raises(RewardError, match=r"^reward 'prompt': .* is a dinov2 model"):
        Clip(str(dino_folder), name="prompt")


def test_is_built_by_its_configuration(clip_folder: Path) -> None:
    config = RewardConfig(kind="clip", role="prompt", name="follows", path=str(clip_folder))
    assert build_reward(config, "cpu").name == "follows"
