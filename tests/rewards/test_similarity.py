"""Every judge of identity: against its model by hand, and the same promises of masks, references and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_judges
import torch
from PIL import Image
from tiny_judges import MEAN, STD
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, ViTConfig, ViTModel

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.similarity import DinoPatches, SimilarityReward
from customized_grpo.utils.pixels import to_tensor

MakePair = Callable[..., Pair]
MODELS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "DINOv3": ("dino", tiny_judges.dinov3),
    "DINOv3 patches": ("dino-patches", tiny_judges.dinov3),
    "DINOv2 patches": ("dino-patches", tiny_judges.dinov2_with_registers),
    "CLIP-I": ("clip-image", tiny_judges.clip),
    "SigLIP 2": ("siglip-image", tiny_judges.siglip),
    "SigLIP 2 NaFlex": ("siglip-image", tiny_judges.siglip_naflex),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {name: make(tmp_path_factory.mktemp("judge")) for name, (_, make) in MODELS.items()}


@pytest.fixture(params=MODELS)
def build(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Callable[..., Any]:
    """A judge of each kind, from its configuration."""
    kind, path = MODELS[request.param][0], str(folders[request.param])

    def make(**options: Any) -> Any:
        return build_reward(RewardConfig(kind=kind, role="identity", path=path, options=options), "cpu")

    return make


def as_images(picture: Image.Image) -> Tensor:
    return to_tensor(picture)[None]


def test_a_picture_is_its_own_best_match(build: Callable[..., Any], make_pair: MakePair) -> None:
    judge, pair = build(), make_pair("a", masked=False)
    images = torch.cat([as_images(pair.references[0]), torch.rand(3, 3, 40, 48)])
    scores = judge(images, [pair] * 4)
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


def test_several_references_count_by_their_mean(build: Callable[..., Any], make_pair: MakePair) -> None:
    judge, pair = build(), make_pair("a", sizes=((48, 40), (40, 64), (40, 40)))
    image = torch.rand(1, 3, 32, 32)
    alone = [
        float(judge(image, [replace(pair, key=f"a{i}", references=(reference,), masks=(mask,))]))
        for i, (reference, mask) in enumerate(zip(pair.references, pair.masks, strict=True))
    ]
    assert float(judge(image, [pair])) == pytest.approx(sum(alone) / 3, abs=1e-3)
    assert max(alone) - min(alone) > 0.01


def test_a_batch_scores_as_its_images_one_by_one(build: Callable[..., Any], make_pair: MakePair) -> None:
    judge = build(batch_size=2)
    pairs = [make_pair("a", 1), make_pair("b", 2, ((64, 64), (30, 60))), make_pair("c", 3, masked=False)]
    images = torch.rand(3, 3, 40, 56)
    together = judge(images, pairs)
    alone = torch.cat([build()(images[i : i + 1], [pairs[i]]) for i in range(3)])
    assert together.shape == (3,) and together.dtype == torch.float32 and not together.requires_grad
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_references_are_encoded_once(
    build: Callable[..., Any], make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, met = build(), []
    encode = judge._encode
    monkeypatch.setattr(judge, "_encode", lambda given: (met.append(len(given["pixel_values"])), encode(given))[1])
    a, b = make_pair("a", 1), make_pair("b", 2)
    images = torch.rand(4, 3, 32, 32)
    first = judge(images, [a, a, b, b])
    assert met == [1, 1, 4]
    torch.testing.assert_close(judge(images, [make_pair("a", 1), a, b, b]), first)
    assert met == [1, 1, 4, 4]


@pytest.mark.parametrize("name", ["CLIP-I", "SigLIP 2"])
def test_image_features_by_hand(name: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    judge: Any = build_reward(RewardConfig(kind=MODELS[name][0], role="identity", path=str(folders[name])), "cpu")
    model = AutoModel.from_pretrained(folders[name], dtype=torch.float32).eval()
    pair, image = make_pair("a", masked=False), torch.rand(1, 3, 32, 32)
    pixels = [judge.frame(one) for one in (image, as_images(pair.references[0]))]
    with torch.no_grad():
        one, other = (model.get_image_features(pixel_values=pixel).pooler_output for pixel in pixels)
    expected = 100 * float(functional.cosine_similarity(one, other))
    assert float(judge(image, [pair])) == pytest.approx(expected, abs=1e-3)


def test_class_token_of_dinov3_by_hand(folders: dict[str, Path], make_pair: MakePair) -> None:
    judge: Any = build_reward(RewardConfig(kind="dino", role="identity", path=str(folders["DINOv3"])), "cpu")
    model = AutoModel.from_pretrained(folders["DINOv3"]).eval()
    pair, image = make_pair("a", masked=False), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        one, other = (model(judge.frame(p)).last_hidden_state[0, 0] for p in (image, as_images(pair.references[0])))
    expected = 100 * float(functional.cosine_similarity(one, other, dim=0))
    assert float(judge(image, [pair])) == pytest.approx(expected, abs=1e-3)


def test_patches_by_hand(folders: dict[str, Path]) -> None:
    judge = DinoPatches(str(folders["DINOv3 patches"]))
    model = AutoModel.from_pretrained(folders["DINOv3 patches"]).eval()
    rng = np.random.default_rng(0)
    reference = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:28] = 255  # of 4 x 4 patches: (1, 1) and (1, 2) whole, (1, 3) by half
    image = torch.rand(1, 3, 32, 32)
    cut = judge._cut(as_images(reference), torch.from_numpy(mask)[None] / 255)
    with torch.no_grad():  # after the class token and three registers
        patches = [functional.normalize(model(judge.frame(p)).last_hidden_state[0, 4:], dim=-1) for p in (cut, image)]
    best = (patches[0] @ patches[1].T).amax(1)[[5, 6, 7]]
    expected = 100 * float((best * torch.tensor([1, 1, 0.5])).sum() / 2.5)
    pair = Pair("a", "a cat", (reference,), (Image.fromarray(mask),))
    assert float(judge(image, [pair])) == pytest.approx(expected, abs=1e-3)


def test_a_subject_that_the_patches_cannot_see_is_told(folders: dict[str, Path]) -> None:
    mask = np.zeros((32, 320), np.uint8)
    mask[:, :8] = 255
    pair = Pair("wide", "a cat", (Image.new("RGB", (320, 32)),), (Image.fromarray(mask),))
    judge = DinoPatches(str(folders["DINOv2 patches"]), name="parts")
    with pytest.raises(RewardError, match=r"^reward 'parts': a reference's subject lies outside the middle"):
        judge(torch.rand(1, 3, 32, 32), [pair])


# Of subjects cut out by a model.


def blob_pair(key: str, seed: int) -> Pair:
    picture = (tiny_judges.blobs(1, seed)[0][0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Pair(key, "a red ball", (Image.fromarray(picture),), (None,), "ball")


def test_a_segmenter_does_what_its_masks_do(build: Callable[..., Any], segformer_folder: Path) -> None:
    judge, pair = build(segmenter=str(segformer_folder)), blob_pair("a", 500)
    (made,) = judge.[segmenter.reference(pair.references[0], "ball")]
    assert 0.03 < made.mean() < 0.4
    given = replace(pair, masks=(Image.fromarray((made[0] * 255).to(torch.uint8).numpy()),))
    images = tiny_judges.blobs(3, 7)[0]
    scores = judge(images, [pair] * 3)
    torch.testing.assert_close(scores, build()(images, [given] * 3), atol=1e-3, rtol=0)
    assert (scores - build()(images, [pair] * 3)).abs().min() > 1e-3


def test_a_mask_that_is_given_wins(build: Callable[..., Any], segformer_folder: Path, make_pair: MakePair) -> None:
    judge, images = build(segmenter=str(segformer_folder)), torch.rand(2, 3, 32, 32)
    assert torch.equal(judge(images, [make_pair("a")] * 2), build()(images, [make_pair("a")] * 2))


def test_masks_of_references_are_made_once_per_content(build: Callable[..., Any], segformer_folder: Path) -> None:
    judge, met = build(segmenter=str(segformer_folder)), []
    judge.segmenter.model.register_forward_pre_hook(
        lambda _, __, given: met.append(len(given["pixel_values"])), with_kwargs=True
    )
    a, b = blob_pair("a", 1), blob_pair("b", 2)
    images = torch.rand(4, 3, 32, 32)
    judge(images, [a, a, b, b])
    # Other prompts for the same photos: pairs of other keys, no new mask.
    judge(images, [blob_pair("c", 1), blob_pair("d", 2), a, b])
    assert met == [1, 1]


def test_pictures_are_cut_out_on_demand(build: Callable[..., Any], segformer_folder: Path) -> None:
    options = {"segmenter": str(segformer_folder), "segment_pictures": True}
    judge, plain = build(**options), build(segmenter=str(segformer_folder))
    pairs = [blob_pair("a", 1), blob_pair("b", 2)]
    images, _ = tiny_judges.blobs(2, 9)
    masks = judge.segmenter.pictures(images, ["ball"] * 2)
    outside = images.clone()
    outside[:, :, :6] = 0.4  # a stripe of the background, far from the ball
    seen = judge.segmenter.pictures(outside, ["ball"] * 2)
    assert torch.equal(seen, masks)  # or the next line would prove nothing
    torch.testing.assert_close(judge(images, pairs), judge(outside, pairs), atol=1e-3, rtol=0)
    assert (plain(images, pairs) - plain(outside, pairs)).abs().min() > 1e-3
    if not isinstance(judge, DinoPatches):
        by_hand = plain(judge._cut(images, masks), pairs)
        torch.testing.assert_close(judge(images, pairs), by_hand, atol=1e-3, rtol=0)


def test_options_that_contradict_each_other_are_refused(build: Callable[..., Any], segformer_folder: Path) -> None:
    with pytest.raises(RewardError, match=r"segment_pictures needs a model; name one as segmenter$"):
        build(segment_pictures=True)
    with pytest.raises(RewardError, match="segmented=false leaves the segmenter nothing to do"):
        build(segmenter=str(segformer_folder), segmented=False)
    with pytest.raises(RewardError, match=r"unknown option 'segmentr'; did you mean 'segmenter'"):
        build(segmentr="x")


def test_other_models_are_refused(build: Callable[..., Any], segformer_folder: Path) -> None:
    judge: SimilarityReward = build()
    config = RewardConfig(kind=judge.kind, role="identity", path=str(segformer_folder))
    with pytest.raises(RewardError, match=rf"^reward '{judge.kind}': .* is a segformer model; give one of"):
        build_reward(config, "cpu")


def test_dinos_own_framing_of_a_photo_of_any_shape(tmp_path: Path, make_pair: MakePair) -> None:
    """As the first DINO is published: a ViT without pooler, whose image processor knows no crop."""
    torch.manual_seed(0)
    settings = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**settings, image_size=32, patch_size=8, initializer_range=0.3), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    old = {"size": 32, "do_resize": True, "do_normalize": True, "resample": 2, "image_mean": MEAN, "image_std": STD}
    tiny_judges.write_frame(tmp_path, "ViTImageProcessor", old)
    options = {"segmented": False, "resize": 36, "crop": 32}
    judge = build_reward(RewardConfig(kind="dino", role="identity", path=str(tmp_path), options=options), "cpu")
    pair = make_pair("a", sizes=((60, 40),))
    picture = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))

    def token(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        size = (height * 36 // min(height, width), width * 36 // min(height, width))
        small = functional.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
        mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in (MEAN, STD))
        pixels = (small[..., top : top + 32, left : left + 32] - mean) / std
        return model.eval()(pixels).last_hidden_state[0, 0]

    with torch.no_grad():
        by_hand = functional.cosine_similarity(token(picture), token(to_tensor(pair.references[0])[None]), dim=0)
    assert float(judge(picture, [pair])) == pytest.approx(100 * float(by_hand), abs=1e-3)


@pytest.mark.parametrize(
    "options", [{"resize": 36}, {"crop": 32}, {"resize": 32, "crop": 36}, {"resize": 3, "crop": 0}]
)
def test_a_framing_is_both_numbers(folders: dict[str, Path], options: dict[str, int]) -> None:
    path = str(folders["DINOv3"])
    with pytest.raises(RewardError, match="resize and crop belong together"):
        build_reward(RewardConfig(kind="dino", role="identity", path=path, options=options), "cpu")
