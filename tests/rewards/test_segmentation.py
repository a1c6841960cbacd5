"""Segmentation: the rule that finds the subject, and each family of models against the model by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_rewards
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Mask2FormerForUniversalSegmentation,
    Sam2Model,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from customized_grpo.protocols import Pair
from customized_grpo.rewards import Dino, RewardError, segmentation
from customized_grpo.rewards.segmentation import Candidates, Segmenter, _by_points, _by_queries, _in_box, choose
from customized_grpo.utils.pixels import to_image

SIDE = 32


def box(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


MIDDLE, CORNER, ALL, PART = box(8, 8, 26, 24), box(0, 0, 10, 10), box(0, 0, 32, 32), box(12, 12, 18, 18)


def chosen(masks: list[Tensor], scores: list[float], labels: list[str | None], subject: str | None) -> Tensor:
    return choose(Candidates(torch.stack(masks), torch.tensor(scores), labels), subject)


def test_the_middle_wins_over_corners_parts_and_backgrounds() -> None:
    masks = [CORNER, ALL, ~MIDDLE, PART, MIDDLE]
    assert torch.equal(chosen(masks, [1.0] * 5, [None] * 5, None), MIDDLE)
    assert torch.equal(chosen(masks, [1.0, 1.0, 1.0, 1.0, 0.05], [None] * 5, None), PART)


def test_a_class_of_the_subjects_name_goes_first() -> None:
    masks, labels = [MIDDLE, CORNER, PART], ["person", "bowl, basin", "dog"]
    assert torch.equal(chosen(masks, [1.0] * 3, labels, "berry bowl"), CORNER)
    assert torch.equal(chosen(masks, [1.0] * 3, labels, "Dog"), PART)
    assert torch.equal(chosen(masks, [1.0] * 3, labels, "hotdog"), MIDDLE)
    assert torch.equal(chosen(masks, [1.0] * 3, labels, None), MIDDLE)
    # A class that marks nothing is no find.
    assert torch.equal(chosen([MIDDLE, CORNER & MIDDLE & PART], [1.0] * 2, ["cat", "dog"], "dog"), MIDDLE)


def test_a_background_by_name_is_none_and_nothing_found_is_everything() -> None:
    assert torch.equal(chosen([MIDDLE, CORNER], [1.0] * 2, ["background", "cat"], None), CORNER)
    assert chosen([MIDDLE, ALL], [0.0, 1.0], ["cat", "background"], "cat").all()


def test_a_model_by_classes_finds_the_ball(segformer_folder: Path) -> None:
    segmenter = Segmenter(str(segformer_folder), name="x")
    images, truth = tiny_rewards.blobs(12, 1234)
    found = segmenter.images(images, ["ball"] * 12)
    assert found.shape == truth.shape and set(found.unique().tolist()) == {0.0, 1.0}
    overlap = (found * truth).sum((1, 2, 3)) / (found + truth).clamp(max=1).sum((1, 2, 3))
    assert overlap.min() > 0.6 and overlap.mean() > 0.75
    # Of another size and shape, and as a reference's photo.
    wide = torch.nn.functional.interpolate(images[:2], (96, 160), mode="bilinear")
    many = segmenter.images(wide, [None] * 2)
    assert many.shape == (2, 1, 96, 160)
    alone = segmenter.reference(to_image(wide[0]), "ball")
    assert alone.shape == (1, 96, 160)
    assert (alone - many[0]).abs().mean() < 0.01


def test_references_are_kept_by_content_and_subject(segformer_folder: Path) -> None:
    segmenter, met = Segmenter(str(segformer_folder), name="x"), []
    segmenter.model.register_forward_pre_hook(
        lambda _, __, given: met.append(len(given["pixel_values"])), with_kwargs=True
    )
    photos = [Image.new("RGB", (40, 30), (200, i, 0)) for i in (0, 100, 0)]
    masks = [segmenter.reference(photo, None) for photo in (*photos, *photos)]
    assert met == [1, 1] and torch.equal(masks[0], masks[2])
    segmenter.reference(photos[0].resize((30, 40)), None)
    segmenter.reference(photos[0], "ball")
    assert met == [1, 1, 1, 1]


def test_a_model_by_points_is_queried_at_nine_of_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Sam2Model.from_pretrained(tiny_rewards.sam2(tmp_path)).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        candidates = _by_points(model, pixels)[1]
        centre = torch.tensor([[[[32.0, 32.0]]]])  # the fifth of the grid, alone
        alone = model(pixel_values=pixels[1:], input_points=centre, multimask_output=True)
    assert candidates.masks.shape == (27, 16, 16)
    assert torch.equal(candidates.masks[12:15], alone.pred_masks[0, 0] > 0)
    torch.testing.assert_close(candidates.scores[12:15], alone.iou_scores[0, 0].clamp(min=0))
    segmenter = Segmenter(str(tmp_path), name="x")
    masks = segmenter.images(torch.rand(3, 3, 48, 40), [None] * 3)
    assert masks.shape == (3, 1, 48, 40) and set(masks.unique().tolist()) <= {0.0, 1.0}


def test_a_model_by_queries_names_its_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tiny_rewards.mask2former(tmp_path)).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
        candidates = _by_queries(model, pixels)[1]
    probabilities = outputs.class_queries_logits[1].softmax(-1)[:, :2]
    assert torch.equal(candidates.masks, outputs.masks_queries_logits[1] > 0)
    assert candidates.labels == [("cat", "sky")[i] for i in probabilities.argmax(-1).tolist()]
    torch.testing.assert_close(candidates.scores, probabilities.amax(-1))
    masks = Segmenter(str(tmp_path), name="x").images(torch.rand(2, 3, 48, 40), ["cat", None])
    assert masks.shape == (2, 1, 48, 40)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Segmenter and detector of the classes and files that the default ones have."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("default")
    (folder / "sam2").mkdir()
    (folder / "dino").mkdir()
    return tiny_rewards.sam2(folder / "sam2", video=True), tiny_rewards.grounding_dino(folder / "dino")


def test_a_detector_finds_the_subjects_box_as_transformers_does(
    published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "_CONFIDENT", 0.0)  # random weights are never sure
    sam2, folder = published
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    photo = to_image(image)
    segmenter = Segmenter(str(sam2), name="x", detector=str(folder))
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    )
    inputs = processor(images=photo, text="berry bowl.", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (found,) = processor.post_process_grounded_object_detection(outputs, inputs["input_ids"], threshold=0.0)
    assert segmenter.detector is not None
    box = segmenter.detector.box(image, " Berry Bowl")
    assert box is not None
    torch.testing.assert_close(box, found["boxes"][found["scores"].argmax()].clamp(0, 1), atol=2e-2, rtol=0)
    pixels = segmenter._frame(image[None])[0]
    with torch.no_grad():
        assert torch.equal(segmenter._masks(image[None], ["berry bowl"])[0], _in_box(segmenter.model, pixels, box))


def test_a_subject_that_is_not_found_is_prompted_with_points(
    published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "_CONFIDENT", 1.0)  # no box is that sure
    sam2, folder = published
    images = torch.rand(2, 3, 64, 64)
    detecting, pointing = Segmenter(str(sam2), name="x", detector=str(folder)), Segmenter(str(sam2), name="x")
    assert detecting.detector is not None and detecting.detector.box(images[0], "cat") is None
    words = ["cat", None]
    assert torch.equal(detecting.images(images, words), pointing.images(images, words))


def test_dino_cuts_out_subjects_of_photos_by_default(
    published: tuple[Path, Path], dino_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dino, "default_segmenter", str(published[0]))
    monkeypatch.setattr("customized_grpo.rewards.similarity.DEFAULT_DETECTOR", str(published[1]))
    photo = to_image(torch.rand(3, 40, 48))
    bare, masked = (Pair("a", "a cat", (photo,), (mask,), subject="cat") for mask in (None, photo.convert("L")))
    reward, images = Dino(str(dino_folder)), torch.rand(2, 3, 32, 32)
    reward.prepare([masked])
    assert "segmenter" not in vars(reward), "only loaded for a reference without a mask"
    reward.prepare([bare])
    assert "segmenter" in vars(reward)
    assert reward.segmenter is not None and reward.segmenter.detector is not None
    mask = reward.segmenter.reference(photo, "cat")
    cut = Pair("b", "a cat", (photo,), (Image.fromarray((mask[0] * 255).byte().numpy()),))
    assert 0 < mask.mean() < 1
    torch.testing.assert_close(reward(images, [bare] * 2), reward(images, [cut] * 2))
    whole = Dino(str(dino_folder), segmenter=None)
    assert (whole(images, [bare] * 2) - reward(images, [bare] * 2)).abs().min() > 1e-2


def test_a_default_that_cannot_be_loaded_is_an_error_with_the_ways_out(
    dino_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Dino, "default_segmenter", str(tmp_path))
    bare = Pair("a", "a cat", (Image.new("RGB", (8, 8)),), (None,))
    with pytest.raises(
        RewardError, match=r"^reward 'dino': no model .*; or give each reference a mask, or set options\."
    ):
        Dino(str(dino_folder)).prepare([bare])
    segformer = tiny_rewards.segformer(tmp_path, steps=0)
    with pytest.raises(RewardError, match="which takes no boxes; remove the detector"):
        Segmenter(str(segformer), name="x", detector="some/detector")


def test_odd_frames_are_refused(segformer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(segformer_folder, tmp_path, dirs_exist_ok=True)
    tiny_rewards.write_frame(tmp_path, "SegformerImageProcessor", {**tiny_rewards.COLOURS, "size": {"large": 1}})
    with pytest.raises(RewardError, match="has no side"):
        Segmenter(str(tmp_path), name="x")


OWN = """
import torch

def red(images, subjects):
    assert subjects == ["ball"] * len(images)
    return (images[:, :1] - images[:, 1:].amax(1, keepdim=True))[..., ::2, ::2]

class Fixed:
    def __init__(self, device):
        self.device = device

    def __call__(self, images, subjects):
        return torch.full((len(images), 4, 4), 0.2, device=self.device)

def flat(images, subjects):
    return torch.ones(4, 4)

def broken(images, subjects):
    raise RuntimeError("out of\\nluck")

def one(images):
    return images
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own")
def test_code_of_the_users_own_makes_masks() -> None:
    images = torch.zeros(5, 3, 32, 32)
    images[:, 0, 8:24, 4:20] = 1
    truth = images[:, :1]
    segmenter = Segmenter("own.py:red", name="x")
    found = segmenter.images(images, ["ball"] * 5)
    assert found.shape == truth.shape and (found - truth).abs().mean() < 0.02
    assert torch.equal(segmenter.reference(to_image(images[0]), "ball"), found[0])
    # Where nothing is found the whole image counts.
    assert Segmenter("own.py:Fixed", name="x").images(images, [None] * 5).all()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flat", r"own\.py:flat returned shape \(4, 4\); it must return one mask per image, .*\(2, h, w\)"),
        ("broken", "the segmenter own.py:broken failed: RuntimeError: out of luck"),
        ("one", r"own\.py:one cannot be called as \(images, subjects\): "),
    ],
)
def test_own_code_that_makes_no_masks_is_reported(name: str, message: str) -> None:
    with pytest.raises(RewardError, match=f"^reward 'x': .*{message}"):
        Segmenter(f"own.py:{name}", name="x").images(torch.rand(2, 3, 8, 8), [None] * 2)
