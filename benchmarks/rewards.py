"""Parameters, memory and work of the default reward models, from their configurations alone, as a table.

python -m benchmarks.rewards   # no GPU and no download
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from customized_grpo.planning.shapes import count
from customized_grpo.utils.outlines import outline_reward
from customized_grpo.utils.tables import markdown_table

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


def gigaflops(model: Any) -> str:
    """Return the floating-point operations of an encoder for one image of 224x224 pixels, in 1e9; "" for others."""
    config = model.config
    encoder = getattr(model, "vision_model", model if config.model_type == "dinov2" else None)
    if encoder is None:
        return ""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(pixel_values=torch.empty(1, 3, 224, 224, device="meta"))
    return f"{counter.get_total_flops() / 1e9:.0f}"


def rows() -> list[list[str]]:
    """Return the rows of the table."""
    made = []
    for kinds, path, width, licence in MODELS:
        model = outline_reward(path, answers=kinds == "vlm-local")
        parameters = count(model).parameters
        shown = "ViT-H/14" if kinds == "hps-v2" else path
        memory = f"{parameters * width / 1e9:.2f}"
        made.append([kinds, shown, f"{parameters / 1e6:,.0f} M", memory, gigaflops(model), licence])
    return made


if __name__ == "__main__":
    columns = ["kind", "model", "parameters", "GB of weights", "GFLOP per image", "licence of the weights"]
    print(markdown_table(columns, rows()))
