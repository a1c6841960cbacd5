"""Every judge of prompts by two encoders: against its model by hand, and prompts encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_judges
import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward

MakePair = Callable[..., Pair]
MODELS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "SigLIP 2": ("siglip", tiny_judges.siglip),
    "SigLIP 2 NaFlex": ("siglip", tiny_judges.siglip_naflex),
    "PickScore": ("pickscore", tiny_judges.clip),
    "HPS v2": ("hps-v2", tiny_judges.clip),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {name: make(tmp_path_factory.mktemp("judge")) for name, (_, make) in MODELS.items()}


def build(kind: str, path: Path | str | None, **options: Any) -> Any:
    path = None if path is None else str(path)
    return build_reward(RewardConfig(kind=kind, role="prompt", name="mine", path=path, options=options), "cpu")


@pytest.mark.parametrize("name", MODELS)
def test_is_the_scaled_cosine_of_image_and_text(name: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    kind, folder = MODELS[name][0], folders[name]
    judge = build(kind, folder)
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
        picture = model.get_image_features(**judge.frame.inputs(image)).pooler_output
    scale = float(model.logit_scale.detach().exp()) if kind == "pickscore" else 100
    expected = scale * float(functional.cosine_similarity(picture, text))
    assert float(judge(image, [pair])) == pytest.approx(expected, abs=1e-3)
    assert judge.scale == pytest.approx(scale)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_scores_as_its_images_one_by_one(name: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    kind, folder = MODELS[name][0], folders[name]
    pairs = [make_pair("a", 1), replace(make_pair("b", 2), prompt="cats and dogs"), make_pair("c", 1)]
    images = torch.rand(3, 3, 40, 56)
    together = build(kind, folder, batch_size=2)(images, pairs)
    alone = torch.cat([build(kind, folder)(images[i : i + 1], [pairs[i]]) for i in range(3)])
    assert together.shape == (3,) and together.dtype == torch.float32 and not together.requires_grad
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)
    assert together.unique().numel() == 3


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_encoded_once(name: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    judge, met = build(MODELS[name][0], folders[name]), []
    judge.model.text_model.register_forward_pre_hook(
        lambda _, __, given: met.append(len(given["input_ids"])), with_kwargs=True
    )
    a, b = make_pair("a", 1), make_pair("b", 2)
    judge(torch.rand(4, 3, 32, 32), [a, a, b, b])
    judge(torch.rand(2, 3, 32, 32), [b, replace(a, key="c")])
    assert met == [1, 1]


@pytest.mark.parametrize("name", MODELS)
def test_what_was_scored_before_changes_no_bit(name: str, folders: dict[str, Path], make_pair: MakePair) -> None:
    """A resumed run has scored less than one that was never stopped."""
    pairs = [replace(make_pair(key, 1), prompt=f"a {key} in the snow") for key in ("dog", "cat", "bird", "cow", "ant")]
    images = torch.rand(5, 3, 32, 32)
    fresh, used = (build(MODELS[name][0], folders[name]) for _ in range(2))
    for pair in (pairs[1], pairs[3]):
        used(images[:1], [pair])
    assert torch.equal(fresh(images, pairs), used(images, pairs))


def test_siglip_hears_no_capitals(folders: dict[str, Path], make_pair: MakePair) -> None:
    judge, pair = build("siglip", folders["SigLIP 2"]), make_pair("a")
    image = torch.rand(1, 3, 32, 32)
    loud = replace(pair, prompt=pair.prompt.upper())
    assert torch.equal(judge(image, [pair]), judge(image, [loud]))


def test_a_processor_may_lie_elsewhere(tmp_path: Path, make_pair: MakePair) -> None:
    for name in ("model", "processor"):
        (tmp_path / name).mkdir()
    tiny_judges.clip(tmp_path / "model", frame=False)
    tiny_judges.processor(tmp_path / "processor")
    with pytest.raises(RewardError, match=r"^reward 'mine': no model could be loaded .* preprocessor_config\.json"):
        build("pickscore", tmp_path / "model")
    judge = build("pickscore", tmp_path / "model", processor=str(tmp_path / "processor"))
    assert judge(torch.rand(1, 3, 32, 32), [make_pair("a")]).isfinite().all()


@pytest.mark.parametrize("path", [None, "xswu/HPSv2", "checkpoints/HPS_v2.1_compressed.pt"])
def test_the_pickles_of_hps_v2_are_refused(path: str | None) -> None:
    with pytest.raises(RewardError, match=r"^reward 'mine': .*pickle.* never loaded; give .*safetensors$") as caught:
        build("hps-v2", path)
    assert "\n" not in str(caught.value)


def test_other_models_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(RewardError, match=r"is a clip model; give one of siglip, siglip2$"):
        build("siglip", folders["HPS v2"])
    with pytest.raises(RewardError, match=r"is a siglip model; give one of clip$"):
        build("pickscore", folders["SigLIP 2"])
