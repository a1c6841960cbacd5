"""Prompt rewards of two encoders: agreement with transformers, and caching of prompts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_rewards
import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward

MakePair = Callable[..., Pair]


def build(kind: str, path: Path | str | None, **options: Any) -> Any:
    path = None if path is None else str(path)
    return build_reward(RewardConfig(kind=kind, role="prompt", name="mine", path=path, options=options), "cpu")


@pytest.mark.parametrize("kind", ["clip", "siglip", "pickscore"])
def test_is_the_scaled_cosine_of_image_and_text(kind: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    folder = folders[kind]
    reward = build(kind, folder)
    pair, image = replace(make_pair("a"), prompt="A Cat in the snow"), torch.rand(1, 3, 40, 56)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = pair.prompt.lower() if kind == "siglip" else pair.prompt
    context = model.config.text_config.max_position_embeddings
    tokens = AutoTokenizer.from_pretrained(folder)(
        [prompt], padding="max_length", max_length=context, return_tensors="pt"
    )
    if kind == "siglip":
        tokens.pop("attention_mask", None)
    with torch.no_grad():
        text = model.get_text_features(**tokens).pooler_output
        features = model.get_image_features(pixel_values=reward.frame(image)).pooler_output
    scale = float(model.logit_scale.detach().exp()) if kind == "pickscore" else 100
    expected = scale * float(functional.cosine_similarity(features, text))
    assert float(reward(image, [pair])) == pytest.approx(expected, abs=1e-3)
    # Beyond the context nothing counts.
    long = replace(pair, prompt="a cat in the snow " * 20)
    longer = replace(long, prompt=long.prompt * 2)
    torch.testing.assert_close(reward(image, [long]), reward(image, [longer]))


@pytest.mark.parametrize("kind", ["clip", "siglip", "pickscore"])
def test_batches_and_the_cache_change_no_score(kind: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    folder = folders[kind]
    pairs = [replace(make_pair(key, 1), prompt=f"a {key} in the snow") for key in ("dog", "cat", "bird", "cow")]
    images = torch.rand(4, 3, 40, 56)
    fresh, used, small = build(kind, folder), build(kind, folder), build(kind, folder, batch_size=2)
    alone = torch.cat([used(images[i : i + 1], [pairs[i]]) for i in (3, 1)])
    together = fresh(images, pairs)
    assert together.shape == (4,) and together.dtype == torch.float32 and not together.requires_grad
    assert torch.equal(together, used(images, pairs)), "a resumed run has an empty cache"
    torch.testing.assert_close(together[[3, 1]], alone, atol=1e-3, rtol=0)
    torch.testing.assert_close(together, small(images, pairs), atol=1e-3, rtol=0)
    met: list[int] = []
    used.model.text_model.register_forward_pre_hook(
        lambda _, __, given: met.append(len(given["input_ids"])), with_kwargs=True
    )
    used(images, [pairs[0], replace(pairs[0], key="x"), replace(pairs[1], prompt="new"), pairs[2]])
    assert met == [1], "prompts are encoded once"


def test_a_processor_may_be_elsewhere(tmp_path: Path, make_pair: MakePair) -> None:
    for name in ("model", "processor"):
        (tmp_path / name).mkdir()
    tiny_rewards.clip(tmp_path / "model", frame=False)
    tiny_rewards.processor(tmp_path / "processor")
    with pytest.raises(RewardError, match=r"^reward 'mine': no model could be loaded .* preprocessor_config\.json"):
        build("pickscore", tmp_path / "model")
    reward = build("pickscore", tmp_path / "model", processor=str(tmp_path / "processor"))
    assert reward(torch.rand(1, 3, 32, 32), [make_pair("a")]).isfinite().all()


@pytest.mark.parametrize("path", [None, "xswu/HPSv2", "checkpoints/HPS_v2.1_compressed.pt"])
def test_the_pickles_of_hps_v2_are_refused(path: str | None) -> None:
    message = r"^reward 'mine': .*pickle.* never loaded; (give .*safetensors|convert .* cgrpo convert-hps .*as path)$"
    with pytest.raises(RewardError, match=message):
        build("hps-v2", path)


def test_a_missing_tokenizer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*token*", "vocab.json", "merges.txt")
    shutil.copytree(folders["clip"], tmp_path / "bare", ignore=ignored)
    with pytest.raises(RewardError, match=r"^reward 'mine': .*has no tokenizer"):
        build("clip", tmp_path / "bare")
