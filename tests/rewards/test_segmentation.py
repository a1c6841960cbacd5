"""Segmentation: the rule that finds the subject, and each family of models against the model by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_rewards
import torch
from PIL import Image
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation, Sam2Model

from customized_grpo.rewards import RewardError
from customized_grpo.rewards.segmentation import Candidates, Segmenter, _by_points, _by_queries, choose

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
    # Of another size and shape, one by one and as a reference's photo.
    wide = torch.nn.functional.interpolate(images, (96, 160), mode="bilinear")
    many = segmenter.images(wide, [None] * 12)
    assert many.shape == (12, 1, 96, 160)
    photo = Image.fromarray((wide[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    alone = segmenter.reference(photo, "ball")
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


def test_code_of_its_own_is_never_run(tmp_path: Path) -> None:
    """BiRefNet's configuration is of this form."""
    settings = {
        "architectures": ["BiRefNet"],
        "model_type": "birefnet",
        "auto_map": {"AutoConfig": "config.C", "AutoModelForImageSegmentation": "birefnet.BiRefNet"},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "config.py").write_text("raise SystemExit('this code was run')\n", encoding="utf-8")
    with pytest.raises(
        RewardError, match=r"^reward 'x': .* needs code of its own, which is never run; .*sam2,"
    ) as message:
        Segmenter(str(tmp_path), name="x")
    assert "\n" not in str(message.value)


def test_other_models_and_odd_frames_are_refused(dino_folder: Path, segformer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"^reward 'x': .* is a dinov2 model; give one of sam, sam2"):
        Segmenter(str(dino_folder), name="x")
    with pytest.raises(RewardError, match=r"weights\.pt' is a pickle, which is never loaded"):
        Segmenter("weights.pt", name="x")
    for file in segformer_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
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

def nothing(images, subjects):
    return None

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
    photo = Image.fromarray((images[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy())
    alone = segmenter.reference(photo, "ball")
    assert torch.equal(alone, found[0])
    # Where nothing is found the whole image counts.
    assert Segmenter("own.py:Fixed", name="x").images(images, [None] * 5).all()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flat", r"own\.py:flat returned shape \(4, 4\); it must return one mask per image, .*\(2, h, w\)"),
        ("nothing", "own.py:nothing returned a NoneType"),
        ("broken", "the segmenter own.py:broken failed: RuntimeError: out of luck"),
        ("one", r"own\.py:one cannot be called as \(images, subjects\): "),
        ("reds", "own.py has no 'reds'; did you mean 'red'"),
    ],
)
def test_own_code_that_makes_no_masks_is_reported(name: str, message: str) -> None:
    with pytest.raises(RewardError, match=f"^reward 'x': .*{message}") as caught:
        Segmenter(f"own.py:{name}", name="x").images(torch.rand(2, 3, 8, 8), [None] * 2)
    assert "\n" not in str(caught.value)
