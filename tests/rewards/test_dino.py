"""The DINO reward against DINO done by hand, and what it must not compute twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import Dinov2Model

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.similarity import Dino
from customized_grpo.utils.pixels import to_tensor

MakePair = Callable[..., Pair]


@pytest.fixture
def dino(dino_folder: Path) -> Dino:
    return Dino(str(dino_folder))


def count_images(reward: Any) -> list[int]:
    """Sizes of the batches that the reward's model meets from now on."""
    met: list[int] = []
    reward.model.register_forward_pre_hook(
        lambda _, __, given: met.append(len(given["pixel_values"])), with_kwargs=True
    )
    return met


def by_hand(folder: Path, picture: Image.Image) -> torch.Tensor:
    """The class token's direction of a picture, by transformers' own processor and model."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    pixels = BitImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")
    model = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        token = model(**pixels).last_hidden_state[0, 0]
    return functional.normalize(token, dim=0)


def test_is_the_cosine_of_class_tokens(dino: Dino, dino_folder: Path, make_pair: MakePair) -> None:
    # Smooth pictures: PIL rounds to 8 bits while resizing and tensors do not.
    ramp = np.linspace(0, 255, 48)[None, :, None] * np.linspace(0.2, 1, 40)[:, None, None]
    reference = Image.fromarray((ramp * [1.0, 0.5, 0.2]).astype(np.uint8))
    picture = Image.fromarray(np.ascontiguousarray(np.asarray(reference)[::-1, ::-1]))
    pair = Pair("a", "a cat", (reference,), (None,))
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    expected = 100 * float(by_hand(dino_folder, reference) @ by_hand(dino_folder, picture))
    assert float(dino(image, [pair])) == pytest.approx(expected, abs=0.5)
    assert expected < 99.5  # so that the two pictures are told apart at all


def test_the_reference_itself_scores_100_where_nothing_is_cut_out(dino: Dino, make_pair: MakePair) -> None:
    pair = make_pair("a", masked=False)
    image = torch.from_numpy(np.array(pair.references[0])).permute(2, 0, 1)[None] / 255
    assert float(dino(image, [pair])) == pytest.approx(100, abs=1e-3)


def test_a_mask_hides_the_background(dino_folder: Path, make_pair: MakePair) -> None:
    pair = make_pair("a")
    pixels = np.array(pair.references[0])
    assert pair.masks[0] is not None
    pixels[np.array(pair.masks[0]) == 0] = 17
    other = Pair("b", pair.prompt, (Image.fromarray(pixels),), pair.masks)
    images = torch.rand(2, 3, 40, 40)
    cut = Dino(str(dino_folder))(images, [pair, pair])
    assert torch.allclose(cut, Dino(str(dino_folder))(images, [other, other]), atol=1e-3)
    whole = Dino(str(dino_folder), segmented=False)
    assert not torch.allclose(cut, whole(images, [pair, pair]), atol=0.1)
    assert not torch.allclose(whole(images, [pair, pair]), whole(images, [other, other]), atol=0.1)


def test_the_background_becomes_the_processors_mean(dino: Dino, make_pair: MakePair) -> None:
    pair = make_pair("a")
    shown = dino._cut(to_tensor(pair.references[0]), dino._masks(pair)[0])
    assert torch.allclose(shown[:, 0, 0], torch.tensor(dino.frame.mean))
    middle = torch.from_numpy(np.array(pair.references[0])[20, 24]) / 255
    assert torch.allclose(shown[:, 20, 24], middle)


def test_several_references_count_by_their_mean(dino: Dino, make_pair: MakePair) -> None:
    pair = make_pair("a", sizes=((48, 40), (40, 64)))
    image = torch.rand(1, 3, 32, 32)
    alone = [
        float(dino(image, [Pair(f"a{i}", pair.prompt, (reference,), (mask,))]))
        for i, (reference, mask) in enumerate(zip(pair.references, pair.masks, strict=True))
    ]
    assert float(dino(image, [pair])) == pytest.approx(sum(alone) / 2, abs=1e-3)


def test_a_batch_scores_as_its_images_one_by_one(dino: Dino, make_pair: MakePair) -> None:
    pairs = [make_pair("a", 1), make_pair("b", 2, ((64, 64),)), make_pair("a", 1)]
    images = torch.rand(3, 3, 40, 56)
    together = dino(images, pairs)
    alone = torch.cat([dino(images[i : i + 1], [pairs[i]]) for i in range(3)])
    assert together.shape == (3,) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-3)
    assert not together.requires_grad


def test_references_are_encoded_once_per_pair(dino: Dino, make_pair: MakePair) -> None:
    met = count_images(dino)
    a, b = make_pair("a", 1), make_pair("b", 2)
    images = torch.rand(6, 3, 32, 32)
    dino(images, [a, a, a, b, b, b])
    assert met == [1, 1, 6]  # each reference by itself, then the pictures
    dino(images, [make_pair("a", 1)] * 3 + [b] * 3)  # read anew, the same pair
    assert met == [1, 1, 6, 6]


def test_equal_keys_of_different_pairs_are_kept_apart(dino: Dino, make_pair: MakePair) -> None:
    image = torch.rand(1, 3, 32, 32)
    first = dino(image, [make_pair("a", 1)])
    assert float(dino(image, [make_pair("a", 2)])) != pytest.approx(float(first), abs=1e-3)


def test_the_cache_is_bounded(dino_folder: Path, make_pair: MakePair) -> None:
    dino = Dino(str(dino_folder), cache_size=2)
    pairs = [make_pair(key, seed) for seed, key in enumerate("abc")]
    images = torch.rand(3, 3, 32, 32)
    expected = dino(images, pairs)  # more pairs in one call than are kept
    assert len(dino._cache) == 2
    assert torch.allclose(dino(images, pairs), expected)
    met = count_images(dino)
    dino(images[:1], pairs[2:])
    assert met == [1]


def test_half_precision_weights_work_in_float32(dino: Dino, dino_folder: Path) -> None:
    stored = load_file(dino_folder / "model.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.float16}
    assert {p.dtype for p in dino.model.parameters()} == {torch.float32}
    assert not dino.model.training and not any(p.requires_grad for p in dino.model.parameters())


def test_a_mask_of_another_size_is_refused(dino: Dino, make_pair: MakePair) -> None:
    pair = make_pair("a")
    wrong = Pair("odd", pair.prompt, pair.references, (Image.new("L", (10, 10)),))
    with pytest.raises(RewardError, match=r"^pair 'odd': a mask of \(10, 10\).*make them equal$"):
        dino(torch.rand(1, 3, 32, 32), [wrong])


def test_a_model_that_lacks_weights_is_refused(dino_folder: Path, tmp_path: Path) -> None:
    for file in dino_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(dino_folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RewardError, match=r"lacks the weights layernorm\.weight"):
        Dino(str(tmp_path), name="identity")


def test_another_kind_of_model_is_refused(clip_folder: Path) -> None:
    with pytest.raises(RewardError, match=r"^reward 'identity': .* is a clip model; give one of"):
        Dino(str(clip_folder), name="identity")


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_in_one_line(missing: str, dino_folder: Path, tmp_path: Path) -> None:
    for file in dino_folder.iterdir():
        if file.name != missing:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RewardError, match=r"^reward 'identity': no model could be loaded") as caught:
        Dino(str(tmp_path), name="identity")
    assert "\n" not in str(caught.value)


def test_is_built_by_its_configuration(dino_folder: Path) -> None:
    options = {"segmented": False, "batch_size": 3}
    config = RewardConfig(kind="dino", role="identity", path=str(dino_folder), options=options)
    reward = build_reward(config, "cpu")
    assert isinstance(reward, Dino)
    assert reward.name == "dino" and not reward.segmented
    with pytest.raises(RewardError, match=r"unknown option 'segmentd'; did you mean 'segmented'"):
        build_reward(config.model_copy(update={"options": {"segmentd": False}}), "cpu")
