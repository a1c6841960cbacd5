"""Folders of DINOv2-base and CLIP ViT-L/14 with random weights, which the rewards load as they load any model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from transformers import CLIPTokenizer

from customized_grpo.rewards import default_path
from customized_grpo.utils.hub import resolve
from customized_grpo.utils.outlines import config_reader

#: preprocessor_config.json of the published models.
_FRAMES = {
    "dino": {"size": {"shortest_edge": 256}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "clip": {
        "size": {"shortest_edge": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
}
_CROP = {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3}


def write_reward(kind: str, device: torch.device, folder: Path) -> None:
    """Write the default model of the reward `kind`, dino or clip, with random weights."""
    path = default_path(kind)
    assert path is not None
    with device:
        config = transformers.AutoConfig.for_model(**config_reader(path, first="config.json")("config.json"))
        model = transformers.AutoModel.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_FRAMES[kind] | _CROP), encoding="utf-8")
    if kind == "clip":
        CLIPTokenizer.from_pretrained(resolve("embedded/reward-prompt")).save_pretrained(folder)
