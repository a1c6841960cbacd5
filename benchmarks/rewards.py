"""Parameters, memory and work of the default reward models, from their configurations alone, as a table.

Image encoders are also timed, with random weights, on the accelerator if there is one.

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
#: Kinds, model, bytes per weight, and licence of the weights by their model card.
MODELS = (
    ("dino, dino-patches", "facebook/dinov2-base", 4, "Apache-2.0"),
    ("clip, clip-image", "openai/clip-vit-large-patch14", 4, "MIT"),
    ("siglip, siglip-image", "google/siglip2-base-patch16-224", 4, "Apache-2.0"),
    ("pickscore", "yuvalkirstain/PickScore_v1", 4, "not stated; its base CLIP-ViT-H-14: MIT"),
    ("hps-v2", "yuvalkirstain/PickScore_v1", 4, "Apache-2.0 (xswu/HPSv2)"),  # a ViT-H/14 of the same shapes
    ("hps-v3", "Qwen/Qwen2-VL-7B-Instruct", 2, "MIT (MizzenAI/HPSv3); base: Apache-2.0"),
    ("vlm-local", "Qwen/Qwen3-VL-8B-Instruct", 2, "Apache-2.0"),
    ("segmenter of dino", "facebook/sam2.1-hiera-small", 4, "Apache-2.0"),
    ("detector of dino", "IDEA-Research/grounding-dino-tiny", 4, "Apache-2.0"),
)


@torch.no_grad()
def encoding(model: Any) -> tuple[str, str]:
    """Return 1e9 floating-point operations and seconds of an encoder per image of 224x224 pixels; "" for others."""
    encoder = getattr(model, "vision_model", model if model.config.model_type == "dinov2" else None)
    if encoder is None:
        return "", ""
    with FlopCounterMode(display=False) as counter:
        encoder(pixel_values=torch.empty(1, 3, 224, 224, device="meta"))
    device = device_of(None)
    encoder.to_empty(device=device)
    for weight in (*encoder.parameters(), *encoder.buffers()):
        weight.fill_(0.01) if weight.is_floating_point() else weight.copy_(torch.arange(weight.numel()).view_as(weight))
    images = torch.rand(_BATCH, 3, 224, 224, device=device)
    times = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        encoder(pixel_values=images)
        synchronise(device)
        times.append(time.perf_counter() - began)
    return f"{counter.get_total_flops() / 1e9:.0f}", f"{statistics.median(times[1:]) / _BATCH:.2g}"


def rows() -> list[list[str]]:
    """Return the rows of the table."""
    made = []
    for kinds, path, width, licence in MODELS:
        model = outline_reward(path, answers=kinds == "vlm-local")
        parameters = count(model).parameters
        shown = "ViT-H/14" if kinds == "hps-v2" else path
        memory = f"{parameters * width / 1e9:.2f}"
        made.append([kinds, shown, f"{parameters / 1e6:,.0f} M", memory, *encoding(model), licence])
    return made


if __name__ == "__main__":
    columns = [
        "kind",
        "model",
        "parameters",
        "GB of weights",
        "GFLOP per image",
        "s per image",
        "licence of the weights",
    ]
    print(markdown_table(columns, rows()))
