"""Identity rewards: agreement with transformers; masks, references, batches and caching for every model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_rewards
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_rewards import MEAN, STD
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, Dinov2Model, ViTConfig, ViTModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import CopyPaste, RewardError, build_reward
from customized_grpo.rewards.similarity import Dino, DinoPatches
from customized_grpo.utils.pixels import to_image, to_tensor

MakePair = Callable[..., Pair]


@pytest.fixture(params=["dino", "dino-patches", "clip-image"])
def build(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Callable[..., Any]:
    """A reward by a class token, by patches and by image features, from its configuration."""
    kind, path = request.param, str(folders[request.param])

    def make(**options: Any) -> Any:
        options = {"segmenter": None, **options}
        return build_reward(RewardConfig(kind=kind, role="identity", path=path, options=options), "cpu")

    return make


def as_images(photo: Image.Image) -> Tensor:
    return to_tensor(photo)[None]


def test_a_image_is_its_own_best_match(build: Callable[..., Any], make_pair: MakePair) -> None:
    reward, pair = build(), make_pair("a", masked=False)
    images = torch.cat([as_images(pair.references[0]), torch.rand(3, 3, 40, 48)])
    scores = reward(images, [pair] * 4)
    assert float(scores[0]) == pytest.approx(100, abs=1e-3)
    assert scores[1:].max() < 99.9


def test_the_background_of_a_masked_reference_does_not_count(build: Callable[..., Any], make_pair: MakePair) -> None:
    pair = make_pair("a")
    pixels = np.array(pair.references[0])
    pixels[np.array(pair.masks[0]) == 0] = 17
    other = Pair("b", pair.prompt, (Image.fromarray(pixels),), pair.masks)
    images = torch.rand(2, 3, 40, 40)
    cut, whole = build(), build(segmented=False)
    torch.testing.assert_close(cut(images, [pair] * 2), cut(images, [other] * 2), atol=1e-3, rtol=0)
    assert (whole(images, [pair] * 2) - whole(images, [other] * 2)).abs().min() > 1e-2


def test_a_pasted_reference_scores_0_and_other_images_keep_their_score(
    build: Callable[..., Any], make_pair: MakePair
) -> None:
    pair = make_pair("a", sizes=((64, 64),))
    pasted, other = as_images(pair.references[0]), torch.rand(1, 3, 64, 64)
    images = torch.cat([pasted, other, 0.6 * pasted + 0.4 * other])
    plain, guarded = build(), build(paste_tolerance=70)
    scores, copied = plain(images, [pair] * 3), CopyPaste()(images, [pair] * 3)
    assert copied[0] > 99.9 and copied[1] < 30 and 75 < copied[2] < 95
    factors = guarded(images, [pair] * 3) / scores
    torch.testing.assert_close(factors, torch.tensor([0.0, 1.0, float(100 - copied[2]) / 30]), atol=1e-4, rtol=0)


def test_a_paste_is_seen_where_no_subject_was_found(build: Callable[..., Any], make_pair: MakePair) -> None:
    pair = make_pair("a", sizes=((64, 64),))
    whole = replace(pair, masks=(Image.new("L", (64, 64), 255),))  # as a segmenter returns it
    assert float(build(paste_tolerance=70)(as_images(pair.references[0]), [whole])) < 1e-2


def test_the_subject_s_word_is_part_of_what_is_cached(
    build: Callable[..., Any], make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, reward = make_pair("a", sizes=((64, 64),)), build()
    halves = {word: torch.zeros(1, 64, 64) for word in ("dog", "cat")}
    halves["dog"][:, :32], halves["cat"][:, 32:] = 1, 1
    monkeypatch.setattr(reward, "_masks", lambda pair: [halves[pair.subject]])
    image = torch.rand(1, 3, 64, 64)
    dog, cat = (float(reward(image, [replace(pair, subject=word)])) for word in halves)
    assert dog != cat


def test_several_references_count_by_their_mean(build: Callable[..., Any], make_pair: MakePair) -> None:
    reward, pair = build(), make_pair("a", sizes=((48, 40), (40, 64), (40, 40)))
    image = torch.rand(1, 3, 32, 32)
    alone = [
        float(reward(image, [replace(pair, key=f"a{i}", references=(reference,), masks=(mask,))]))
        for i, (reference, mask) in enumerate(zip(pair.references, pair.masks, strict=True))
    ]
    assert float(reward(image, [pair])) == pytest.approx(sum(alone) / 3, abs=1e-3)
    assert max(alone) - min(alone) > 0.01


def test_batches_change_no_score_and_references_are_encoded_once(
    build: Callable[..., Any], make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [make_pair("a", 1), make_pair("b", 2, ((64, 64), (30, 60))), make_pair("c", 3, masked=False)]
    images = torch.rand(3, 3, 40, 56)
    reward, met = build(), []
    together = reward(images, pairs)
    assert together.shape == (3,) and together.dtype == torch.float32 and not together.requires_grad
    torch.testing.assert_close(build(batch_size=2)(images, pairs), together, atol=1e-3, rtol=0)
    alone = torch.cat([build()(images[i : i + 1], [pairs[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)
    encode = reward._encode
    monkeypatch.setattr(reward, "_encode", lambda given: (met.append(len(given)), encode(given))[1])
    assert torch.equal(reward(images, [make_pair("a", 1), *pairs[1:]]), together)
    assert met == [3], "only the images: pairs that are read again have the same references"
    other = reward(images[:1], [make_pair("a", 9)])
    assert float(other) != float(together[0]), "another pair with a known key"


def test_the_class_token_by_hand_with_transformers_own_processor(dino_folder: Path) -> None:
    """Stored in half precision, computed in float32."""
    # Smooth images: PIL rounds to 8 bits while resizing and tensors do not.
    ramp = np.linspace(0, 255, 48)[None, :, None] * np.linspace(0.2, 1, 40)[:, None, None]
    reference = Image.fromarray((ramp * [1.0, 0.5, 0.2]).astype(np.uint8))
    image = Image.fromarray(np.ascontiguousarray(np.asarray(reference)[::-1, ::-1]))
    model = Dinov2Model.from_pretrained(dino_folder, dtype=torch.float32).eval()
    processor = BitImageProcessorPil.from_pretrained(dino_folder)
    with torch.no_grad():
        one, other = (model(**processor(p, return_tensors="pt")).last_hidden_state[0, 0] for p in (reference, image))
    expected = 100 * float(functional.cosine_similarity(one, other, dim=0))
    reward = Dino(str(dino_folder), segmenter=None)
    score = float(reward(as_images(image), [Pair("a", "a cat", (reference,), (None,))]))
    assert score == pytest.approx(expected, abs=0.5)
    assert expected < 99.5
    assert load_file(dino_folder / "model.safetensors")["layernorm.weight"].dtype == torch.float16
    assert {weight.dtype for weight in reward.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["clip-image", "siglip-image"])
def test_image_features_by_hand(kind: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    reward: Any = build_reward(RewardConfig(kind=kind, role="identity", path=str(folders[kind])), "cpu")
    model = AutoModel.from_pretrained(folders[kind], dtype=torch.float32).eval()
    pair, image = make_pair("a", masked=False), torch.rand(1, 3, 32, 32)
    pixels = [reward.frame(one) for one in (image, as_images(pair.references[0]))]
    with torch.no_grad():
        one, other = (model.get_image_features(pixel_values=pixel).pooler_output for pixel in pixels)
    expected = 100 * float(functional.cosine_similarity(one, other))
    assert float(reward(image, [pair])) == pytest.approx(expected, abs=1e-3)


def test_patches_by_hand(folders: dict[str, Path]) -> None:
    reward = DinoPatches(str(folders["dino-patches"]))
    model = AutoModel.from_pretrained(folders["dino-patches"]).eval()
    rng = np.random.default_rng(0)
    reference = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:28] = 255  # of 4 x 4 patches: (1, 1) and (1, 2) whole, (1, 3) by half
    image = torch.rand(1, 3, 32, 32)
    cut = reward._cut(as_images(reference), torch.from_numpy(mask)[None] / 255)
    with torch.no_grad():  # after the class token and three registers
        patches = [functional.normalize(model(reward.frame(p)).last_hidden_state[0, 4:], dim=-1) for p in (cut, image)]
    best = (patches[0] @ patches[1].T).amax(1)[[5, 6, 7]]
    expected = 100 * float((best * torch.tensor([1, 1, 0.5])).sum() / 2.5)
    pair = Pair("a", "a cat", (reference,), (Image.fromarray(mask),))
    assert float(reward(image, [pair])) == pytest.approx(expected, abs=1e-3)


def test_a_subject_that_the_patches_cannot_see_is_reported(dino_folder: Path) -> None:
    mask = np.zeros((32, 320), np.uint8)
    mask[:, :8] = 255
    pair = Pair("wide", "a cat", (Image.new("RGB", (320, 32)),), (Image.fromarray(mask),))
    reward = DinoPatches(str(dino_folder), name="parts")
    with pytest.raises(RewardError, match=r"^reward 'parts': a reference's subject lies outside the centre crop"):
        reward(torch.rand(1, 3, 32, 32), [pair])


def blob_pair(key: str, seed: int) -> Pair:
    return Pair(key, "a red ball", (to_image(tiny_rewards.blobs(1, seed)[0][0]),), (None,), "ball")


def test_images_are_cut_out_on_demand(build: Callable[..., Any], segformer_folder: Path) -> None:
    options = {"segmenter": str(segformer_folder), "segment_images": True}
    reward, plain = build(**options), build(segmenter=str(segformer_folder))
    pairs = [blob_pair("a", 1), blob_pair("b", 2)]
    images, _ = tiny_rewards.blobs(2, 9)
    masks = reward.segmenter.images(images, ["ball"] * 2)
    outside = images.clone()
    outside[:, :, :6] = 0.4  # a stripe of the background, far from the ball
    seen = reward.segmenter.images(outside, ["ball"] * 2)
    assert torch.equal(seen, masks)  # or the next line would prove nothing
    torch.testing.assert_close(reward(images, pairs), reward(outside, pairs), atol=1e-3, rtol=0)
    assert (plain(images, pairs) - plain(outside, pairs)).abs().min() > 1e-3
    if not isinstance(reward, DinoPatches):
        by_hand = plain(reward._cut(images, masks), pairs)
        torch.testing.assert_close(reward(images, pairs), by_hand, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_images": True, "segmenter": None}, r"segment_images needs a model; name one as segmenter$"),
        ({"segmenter": "x", "segmented": False}, "segmented=false leaves the segmenter unused"),
        ({"resize": 32, "crop": 36}, "resize and crop belong together"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, dino_folder: Path) -> None:
    config = RewardConfig(kind="dino", role="identity", path=str(dino_folder), options=options)
    with pytest.raises(RewardError, match=f"^reward 'dino': .*{message}"):
        build_reward(config, "cpu")


def test_pairs_that_cannot_be_compared_are_refused(dino_folder: Path, make_pair: MakePair) -> None:
    reward, pair, image = Dino(str(dino_folder)), make_pair("a"), torch.rand(1, 3, 32, 32)
    with pytest.raises(RewardError, match=r"^pair 'none' has no reference to compare with$"):
        reward(image, [Pair("none", "a cat", (), ())])
    wrong = Pair("odd", pair.prompt, pair.references, (Image.new("L", (10, 10)),))
    with pytest.raises(RewardError, match=r"^pair 'odd': a mask of \(10, 10\).*make them equal$"):
        reward(image, [wrong])


def test_dinos_own_framing_of_a_photo_of_any_shape(tmp_path: Path, make_pair: MakePair) -> None:
    """As the first DINO is published: a ViT without pooler, whose image processor knows no crop."""
    torch.manual_seed(0)
    settings = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**settings, image_size=32, patch_size=8, initializer_range=0.3), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    old = {"size": 32, "do_resize": True, "do_normalize": True, "resample": 2, "image_mean": MEAN, "image_std": STD}
    tiny_rewards.write_frame(tmp_path, "ViTImageProcessor", old)
    options = {"segmented": False, "resize": 36, "crop": 32}
    reward = build_reward(RewardConfig(kind="dino", role="identity", path=str(tmp_path), options=options), "cpu")
    pair = make_pair("a", sizes=((60, 40),))
    photo = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))

    def token(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        size = (height * 36 // min(height, width), width * 36 // min(height, width))
        small = functional.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
        mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in (MEAN, STD))
        pixels = (small[..., top : top + 32, left : left + 32] - mean) / std
        return model.eval()(pixels).last_hidden_state[0, 0]

    with torch.no_grad():
        by_hand = functional.cosine_similarity(token(photo), token(to_tensor(pair.references[0])[None]), dim=0)
    assert float(reward(photo, [pair])) == pytest.approx(100 * float(by_hand), abs=1e-3)
