"""Parameters, memory and work of the default reward models, from their configurations alone, as a table.

Floating-point operations are of one image, without the models' preprocessing: counted on torch's meta device, or on the
CPU for the detector. Image encoders are also timed, with random weights, on the accelerator if there is one.

python -m benchmarks.rewards   # no GPU and no download
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.timing import synchronise
from customized_grpo.planning.shapes import count
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.outlines import outline_reward
from customized_grpo.utils.tables import markdown_table

_BATCH = 2  # images that are timed together
#: Kinds, model, licence of the weights, and where their model card or the authors' repository or package states it.
MODELS = (
    ("dino, dino-patches", "facebook/dinov2-base", "Apache-2.0", "github.com/facebookresearch/dinov2"),
    (
        "dino, dino-patches",
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "DINOv3 License",
        "github.com/facebookresearch/dinov3/blob/main/LICENSE.md",
    ),
    ("clip, clip-image", "openai/clip-vit-large-patch14", "MIT", "github.com/openai/CLIP"),
    ("siglip, siglip-image", "google/siglip2-base-patch16-224", "Apache-2.0", "github.com/google-research/big_vision"),
    ("pickscore", "yuvalkirstain/PickScore_v1", "none stated; code: MIT", "github.com/yuvalkirstain/PickScore"),
    ("hps-v2", "yuvalkirstain/PickScore_v1", "Apache-2.0", "github.com/tgxs002/HPSv2"),  # a ViT-H/14 of the same shapes
    ("hps-v3", "Qwen/Qwen2-VL-7B-Instruct", "MIT; base: Apache-2.0", "pypi.org/project/hpsv3"),
    ("vlm-local", "Qwen/Qwen3-VL-8B-Instruct", "Apache-2.0", "github.com/QwenLM/Qwen3-VL"),
    ("segmenter of dino", "facebook/sam2.1-hiera-small", "Apache-2.0", "github.com/facebookresearch/sam2"),
    ("detector of dino", "IDEA-Research/grounding-dino-tiny", "Apache-2.0", "github.com/IDEA-Research/GroundingDINO"),
)
#: Kinds in bfloat16; the others are in float32.
_HALF = ("hps-v3", "vlm-local")
#: Patches of an image of a vision-language model: 448x448 pixels for hps-v3, 512x512 for vlm-local.
_PATCHES = 1024
#: Tokens of text by model type: the reward's own, at about 4.5 letters per token, and a prompt of 20 tokens.
_TEXT = {"qwen2_vl": 620, "qwen3_vl": 275}


def encoder_of(model: Any) -> Any:
    """Return the image encoder of a model that has one of its own or is one; None for others."""
    return getattr(model, "vision_model", model if model.config.model_type in ("dinov2", "dinov3_vit") else None)


@torch.no_grad()
def operations(model: Any) -> float:
    """Return 1e9 floating-point operations of a model, or of its image encoder, per image."""
    kind, encoder = model.config.model_type, encoder_of(model)
    device = "cpu" if kind == "grounding-dino" else "meta"  # its operations depend on values
    with torch.device(device), FlopCounterMode(display=False) as counter:
        if encoder is not None:
            encoder(pixel_values=torch.empty(1, 3, 224, 224))
        elif kind == "sam2_video":
            model.vision_encoder(torch.empty(1, 3, 1024, 1024))
        elif kind == "grounding-dino":
            _fill(model, device)
            model(pixel_values=torch.zeros(1, 3, 800, 800), input_ids=torch.ones(1, 4, dtype=torch.long))
        else:
            _answer(getattr(model, "model", model), _TEXT[kind])
    total: int = counter.get_total_flops()
    return total / 1e9


def _answer(model: Any, text: int) -> None:
    """Run a Qwen-VL on one image and tokens of text, on the meta device; its own forward pass needs values there."""
    tower, config = model.visual, model.visual.config
    hidden = tower.patch_embed(torch.empty(_PATCHES, 3 * config.temporal_patch_size * config.patch_size**2))
    rotary = (torch.empty(_PATCHES, hidden.shape[1] // config.num_heads),) * 2
    bounds = torch.tensor([0, _PATCHES], device="cpu")
    for block in tower.blocks:
        hidden = block(hidden, cu_seqlens=bounds, position_embeddings=rotary)
    for merger in (tower.merger, *getattr(tower, "deepstack_merger_list", ())):
        merger(hidden)
    tokens = _PATCHES // config.spatial_merge_size**2 + text
    words = torch.empty(1, tokens, model.language_model.config.hidden_size)
    places = torch.zeros(3, 1, tokens, dtype=torch.long)
    model.language_model(inputs_embeds=words, position_ids=places, use_cache=False)


def _fill(model: Any, device: torch.device | str) -> None:
    """Move a model from the meta device, with arbitrary weights."""
    model.to_empty(device=device)
    for weight in (*model.parameters(), *model.buffers()):
        weight.fill_(0.01 if weight.is_floating_point() else 0)


@torch.no_grad()
def seconds(model: Any) -> str:
    """Return the seconds of an image encoder per image of 224x224 pixels; "" for others."""
    encoder, device = encoder_of(model), device_of(None)
    if encoder is None:
        return ""
    _fill(encoder, device)
    images = torch.rand(_BATCH, 3, 224, 224, device=device)
    times = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        encoder(pixel_values=images)
        synchronise(device)
        times.append(time.perf_counter() - began)
    return f"{statistics.median(times[1:]) / _BATCH:.2g}"


def rows() -> list[list[str]]:
    """Return the rows of the table."""
    made = []
    for kinds, path, licence, source in MODELS:
        model = outline_reward(path, answers=kinds == "vlm-local")
        parameters = count(model).parameters
        shown = "ViT-H/14" if kinds == "hps-v2" else path
        memory = f"{parameters * (2 if kinds in _HALF else 4) / 1e9:.2f}"
        work = [f"{operations(model):,.0f}", seconds(model)]
        made.append([kinds, shown, f"{parameters / 1e6:,.0f} M", memory, *work, f"[{licence}](https://{source})"])
    return made


if __name__ == "__main__":
    columns = ["kind", "model", "parameters", "GB of weights", "GFLOP per image", "s per image"]
    print(markdown_table([*columns, "licence of the weights"], rows()))
