"""A tiny model of each kind: its policy, and the diffusers pipeline that the policy is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import devices
import proofs
import pytest
import tiny
import tiny_edit
import tiny_flux2
import tiny_qwen
import tiny_uno
import torch
from diffusers.pipelines.joyimage import image_processor as joyimage
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image
from proofs import HEIGHT, PROMPT, STEPS, WIDTH, random_image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.protocols import Conditions

TOKENS = 208  # text tokens of FLUX.2: dev's system message alone has 169 letters, and the tiny tokenizer spells


@dataclass(frozen=True)
class Source:
    """How a model is made, and called.

    `make` makes its pipeline; `settings` are those of its policy; `arguments` those of the pipeline's call
    for latents and references, beside prompt, size and steps. With `adapter`, UNO's LoRA is fused into the weights.
    `stock_references` is False if the pipeline itself takes no references, and `sized` if its image's size follows from
    them. `scale` is its argument of classifier-free guidance, "" if it has none.
    """

    make: Callable[[], Any]
    settings: dict[str, Any]
    references: Sequence[Image.Image]
    arguments: Callable[[Tensor, Sequence[Image.Image]], dict[str, Any]]
    adapter: bool = False
    stock_references: bool = True
    sized: bool = True
    scale: str = ""


@dataclass(frozen=True)
class Model:
    """A model in its folder."""

    name: str
    source: Source
    folder: Path
    further: dict[str, Any] = field(default_factory=dict)

    def policy(self, device: str = "cpu", **changes: Any) -> PipelinePolicy:
        settings = {**self.source.settings, **self.further, "device": device, **changes}
        return proofs.built(PipelinePolicy, self.folder, **settings)  # type: ignore[type-abstract]

    def encode(self, policy: PipelinePolicy, prompt: str = PROMPT) -> Conditions:
        return policy.encode(prompt, self.source.references)

    def stock_policy(self, device: str = "cpu", **changes: Any) -> tuple[PipelinePolicy, Conditions]:
        """The policy without an adapter, and conditioning that the pipeline has too."""
        policy = self.policy(device, **{"adapter": None, **changes})
        return policy, policy.encode(PROMPT, self.source.references if self.source.stock_references else [])

    def stock(self, policy: PipelinePolicy, dtype: torch.dtype = torch.float32, **parts: Any) -> Any:
        """The diffusers pipeline on the policy's device."""
        pipeline = proofs.stock(self.folder, dtype=dtype, **parts).to(policy.device)
        if isinstance(pipeline.text_encoder, Qwen2_5_VLForConditionalGeneration):
            tiny_qwen.number_image_tokens(pipeline.text_encoder)
        if self.name == "longcat-image-edit":
            pipeline.tokenizer_max_length = policy.config.max_sequence_length  # no argument of its call
        return pipeline

    def draw(
        self, pipeline: Any, latents: Tensor, given: Sequence[Image.Image] | None = None, **changes: Any
    ) -> Tensor:
        """The pipeline's image from these latents, of the model's references unless others are given.

        With the policy's default settings unless changed.
        """
        shared = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "pt"}
        if self.source.sized:
            shared |= {"height": HEIGHT, "width": WIDTH}
        own = self.source.references if self.source.stock_references else []
        references = own if given is None else given
        images: Tensor = pipeline(**{**shared, **self.source.arguments(latents, references), **changes}).images
        return images


def _flux(latents: Tensor, references: Sequence[Image.Image]) -> dict[str, Any]:
    arguments = {"latents": latents, "max_sequence_length": 24, "guidance_scale": 2.5}
    if references:
        arguments |= {"image": references[0], "_auto_resize": False, "max_area": HEIGHT * WIDTH}
    return arguments


def _flux2(latents: Tensor, references: Sequence[Image.Image]) -> dict[str, Any]:
    return {
        "image": list(references) or None,
        "latents": latents.transpose(1, 2).unflatten(2, (HEIGHT // 8, WIDTH // 8)),
        "max_sequence_length": TOKENS,
        "guidance_scale": 2.5,
    }


def _flux2_kv(latents: Tensor, references: Sequence[Image.Image]) -> dict[str, Any]:
    return {name: value for name, value in _flux2(latents, references).items() if name != "guidance_scale"}


def _qwen(latents: Tensor, references: Sequence[Image.Image]) -> dict[str, Any]:
    return {"image": list(references), "latents": latents, "true_cfg_scale": 1.0}


def _longcat(latents: Tensor, references: Sequence[Image.Image]) -> dict[str, Any]:
    return {"image": references[0], "latents": latents, "guidance_scale": 1.0}


def _joyimage(latents: Tensor, references: Sequence[Image.Image]) -> dict[str, Any]:
    patches = latents.unflatten(1, (HEIGHT // 8, WIDTH // 8)).unflatten(3, (4, 1, 2, 2))
    whole = patches.permute(0, 3, 4, 1, 5, 2, 6).reshape(-1, 4, 1, HEIGHT // 4, WIDTH // 4)
    return {"images": list(references) or None, "latents": whole, "guidance_scale": 1.0}


_TWO = [random_image(64, 72, 1), random_image(80, 64, 2)]
_FLUX2 = {"kind": "flux2", "reference_sizes": None, "max_sequence_length": TOKENS}
_QWEN = {"kind": "qwen-image-edit", "reference_sizes": None}
_QWEN_TWO = [random_image(40, 50, 0), random_image(90, 30, 1)]
SOURCES = {
    "flux-kontext": Source(
        tiny.flux_kontext,
        {"reference_sizes": [(16, 24)]},
        [random_image(16, 24, 0)],
        _flux,
        scale="true_cfg_scale",
    ),
    "uno": Source(
        partial(tiny.flux, layers=tiny_uno.LAYERS, dynamic_shifting=True),
        {"kind": "uno", "reference_sizes": [(16, 24), (24, 16)]},
        [random_image(16, 24, 0), random_image(24, 16, 1)],
        _flux,
        adapter=True,
        stock_references=False,
    ),
    "flux2-klein": Source(tiny_flux2.klein, _FLUX2, _TWO, _flux2),
    "flux2-dev": Source(tiny_flux2.dev, _FLUX2, _TWO, _flux2),
    "flux2-klein-kv": Source(
        tiny_flux2.klein_kv,
        {**_FLUX2, "kind": "flux2-klein-kv"},
        _TWO,
        _flux2_kv,
    ),
    "longcat-image-edit": Source(
        tiny_edit.longcat,
        {"kind": "longcat-image-edit", "reference_sizes": None, "max_sequence_length": 96},
        [random_image(48, 36, 0)],
        _longcat,
        sized=False,
        scale="guidance_scale",
    ),
    "joyimage-edit-plus": Source(
        tiny_edit.joyimage,
        {"kind": "joyimage-edit-plus", "reference_sizes": None, "max_sequence_length": 4096},
        _QWEN_TWO,
        _joyimage,
        scale="guidance_scale",
    ),
    "qwen-image-edit": Source(tiny_qwen.qwen_image_edit, _QWEN, _QWEN_TWO, _qwen, scale="true_cfg_scale"),
    # Modulates references as at time 0; here with a fixed shift of noise levels.
    "qwen-image-edit-2511": Source(
        partial(tiny_qwen.qwen_image_edit, zero_cond_t=True, dynamic_shifting=False),
        _QWEN,
        _QWEN_TWO,
        _qwen,
        scale="true_cfg_scale",
    ),
}
#: Models that differ from those above in what they are distilled to only.
BASES = {
    "flux2-klein-base": Source(partial(tiny_flux2.klein, distilled=False), _FLUX2, _TWO, _flux2),
}


@contextmanager
def small_qwen() -> Iterator[None]:
    """Shrink the own sizes of pipelines with a Qwen-VL, and do without their processors of videos.

    Qwen-Image-Edit's are a 256th of their area and less; LongCat's are in tokens of 8x8 pixels, and its image has the
    size of `proofs` for references of its shape.
    """
    sizes = {"VAE_IMAGE_SIZE": 64 * 64, "CONDITION_IMAGE_SIZE": 96 * 96}
    own, buckets = longcat.calculate_dimensions, {1024: [(64, 72), (64, 64), (80, 64), (96, 32)]}
    with (
        mock.patch.multiple(plus, **sizes),
        mock.patch.object(
            longcat, "calculate_dimensions", lambda _, ratio: tuple(s // 2 for s in own(4 * HEIGHT * WIDTH, ratio))
        ),
        mock.patch.object(joyimage, "BUCKETS", buckets),
        tiny_qwen.without_video(),
    ):
        yield


def made(name: str, folder: Path) -> Model:
    """Save the model of that name to the empty `folder`."""
    source = {**SOURCES, **BASES}[name]
    with small_qwen():
        tiny.save(source.make(), folder)
    further = {}
    if source.adapter:
        further["adapter"] = str(tiny_uno.save(folder / "dit_lora.safetensors", tiny_uno.uno_lora()))
    return Model(name, source, folder, further)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """The tiny model of a name, made once."""
    return cache(lambda name: made(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Model:
    return models(request.param)


@pytest.fixture(autouse=True)
def small_references() -> Iterator[None]:
    with small_qwen():
        yield


def each_model(*on_cpu: str, of: Sequence[str] = tuple(SOURCES)[:-1]) -> pytest.MarkDecorator:
    """Run a test with `device` and `model`: each of the models `of` on a GPU, those `on_cpu` on the CPU."""
    cases = [pytest.param(devices.GPU, name, marks=pytest.mark.gpu, id=f"{name}-gpu") for name in of]
    cases += [pytest.param("cpu", name, id=f"{name}-cpu") for name in on_cpu]
    return pytest.mark.parametrize(("device", "model"), cases, indirect=["model"])
