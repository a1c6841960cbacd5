"""Small random rewards of the classes that real ones have, in folders as the hub's are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import tiny_qwen
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    GenerationConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CONTEXT = 24
COLOURS = {"resample": 3, "image_mean": MEAN, "image_std": STD, "do_normalize": True, "do_rescale": True}
FRAME = {
    **COLOURS,
    "do_resize": True,
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "rescale_factor": 1 / 255,
    "do_convert_rgb": True,
}
SMALL = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_frame(folder: Path, kind: str, settings: dict[str, Any] = FRAME) -> None:
    text = json.dumps({**settings, "image_processor_type": kind})
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def clip(folder: Path, frame: bool = True) -> Path:
    """A CLIPModel; without `frame` neither processor nor tokenizer, as PickScore is published."""
    tokenizer = tiny.clip_tokenizer()
    text = {
        **SMALL,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).half().save_pretrained(folder)
    if frame:
        processor(folder)
    return folder


def processor(folder: Path) -> Path:
    tiny.clip_tokenizer().save_pretrained(folder)
    write_frame(folder, "CLIPImageProcessor")
    return folder


def dinov3(folder: Path) -> Path:
    config = DINOv3ViTConfig(**SMALL, image_size=32, patch_size=8, num_register_tokens=3, initializer_range=0.3)
    DINOv3ViTModel(config).save_pretrained(folder)
    write_frame(folder, "DINOv3ViTImageProcessor", {**COLOURS, "size": {"height": 32, "width": 32}, "resample": 2})
    return folder


def dinov2(folder: Path) -> Path:
    """In half precision, which the reward does not compute in."""
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**shape, initializer_range=0.3)).half().save_pretrained(folder)
    write_frame(folder, "BitImageProcessor")
    return folder


def siglip_text(folder: Path) -> dict[str, Any]:
    """The text encoder's settings; its tokenizer goes to `folder`."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Siglip2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**SMALL, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}


def siglip(folder: Path) -> Path:
    """SigLIP 2 of a fixed resolution, which is of SigLIP's own class."""
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=siglip_text(folder), vision_config=vision)).save_pretrained(folder)
    write_frame(folder, "SiglipImageProcessor", {**COLOURS, "size": {"height": 32, "width": 32}})
    return folder


def sam2(folder: Path, video: bool = False) -> Path:
    """SAM 2 at 64 pixels; with `video` its published form, which has a memory of frames on top."""
    backbone = {
        "hidden_size": 8,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 4],
        "window_positional_embedding_background_size": [4, 4],
        "global_attention_blocks": [3],
        "model_type": "sam2_hiera_det_model",
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    if video:
        sizes = ("attention_hidden_size", "encoder_hidden_size", "attention_feed_forward_hidden_size")
        memory = {**{f"memory_{size}": 32 for size in sizes}, "memory_attention_num_layers": 1, "image_size": 64}
        Sam2VideoModel(Sam2VideoConfig(**config.to_dict() | memory)).save_pretrained(folder)
    else:
        Sam2Model(config).save_pretrained(folder)
    write_frame(folder, "Sam2ImageProcessor", {**COLOURS, "size": {"height": 64, "width": 64}})
    return folder


def swin(**outputs: Any) -> SwinConfig:
    """A backbone of four stages."""
    shape = {"image_size": 64, "embed_dim": 8, "window_size": 2}
    return SwinConfig(depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], **shape, **outputs)


def grounding_dino(folder: Path) -> Path:
    """Grounding DINO at 128 pixels, with a vocabulary of letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{word}" for word in words[6:]]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=swin(out_indices=[2, 3, 4]),
        text_config=BertConfig(**SMALL, vocab_size=len(words)),
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    frame = {**COLOURS, "resample": 2, "size": {"shortest_edge": 128, "longest_edge": 160}}
    write_frame(folder, "GroundingDinoImageProcessor", frame)
    return folder


def mask2former(folder: Path) -> Path:
    config = Mask2FormerConfig(
        backbone_config=swin(out_features=["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        id2label={0: "cat", 1: "sky"},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    write_frame(folder, "Mask2FormerImageProcessor", {**COLOURS, "size": {"shortest_edge": 64, "longest_edge": 128}})
    return folder


def blobs(count: int, seed: int, side: int = 64) -> tuple[Tensor, Tensor]:
    """Images (count, 3, side, side) of a reddish disc near the middle of a bluish noise; its masks (.., 1, ..)."""
    rng = torch.Generator().manual_seed(seed)
    place = (torch.arange(side) + 0.5) / side
    x, y = 0.4 + 0.2 * torch.rand(2, count, 1, 1, generator=rng)
    radius = 0.15 + 0.1 * torch.rand(count, 1, 1, generator=rng)
    masks = (((place - x) ** 2 + (place[:, None] - y) ** 2) < radius**2)[:, None].float()
    noise = torch.rand(count, 3, side, side, generator=rng)
    red, blue = (torch.tensor(colour).view(3, 1, 1) for colour in ((0.8, 0.2, 0.1), (0.1, 0.3, 0.8)))
    return (0.3 * noise + 0.7 * (masks * red + (1 - masks) * blue)).clamp(0, 1), masks


def segformer(folder: Path, steps: int = 80) -> Path:
    """A SegFormer that has learnt to tell `blobs`: class "ball" from class "background"."""
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 16, 16, 16],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        id2label={0: "background", 1: "ball"},
    )
    model = SegformerForSemanticSegmentation(config)
    write_frame(folder, "SegformerImageProcessor", {**COLOURS, "size": {"height": 64, "width": 64}})
    mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in (MEAN, STD))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        images, masks = blobs(8, step)
        logits = model(pixel_values=(images - mean) / std).logits
        wanted = functional.interpolate(masks, logits.shape[-2:], mode="area")[:, 0].round().long()
        loss = functional.cross_entropy(logits, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


def qwen_base(folder: Path) -> Path:
    """What HPS v3 takes of Qwen2-VL: configuration, tokenizer and image processor, no weights."""
    spelling = tiny_qwen.tokenizer()
    text = {"hidden_size": 32, "num_attention_heads": 4, **tiny_qwen.rope(2, 1, 1)}
    text["vocab_size"] = 400  # more than the tokenizer has, as in the real one
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 1, "patch_size": 14}
    tiny_qwen.config_of(Qwen2VLConfig, spelling, text, vision).save_pretrained(folder)
    spelling.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


def qwen3_vl(folder: Path) -> Path:
    """A Qwen3-VL that likes to answer with digits."""
    spelling = tiny_qwen.tokenizer()
    text = {"hidden_size": 32, "num_key_value_heads": 1, "head_dim": 16, **tiny_qwen.rope(4, 2, 2)}
    vision = {"hidden_size": 32, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    model = Qwen3VLForConditionalGeneration(tiny_qwen.config_of(Qwen3VLConfig, spelling, text, vision))
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, 0, 2 / weight[0].numel() ** 0.5)
    model.lm_head.weight.data[spelling.convert_tokens_to_ids(list("01234"))] *= 4
    model.save_pretrained(folder)
    spelling.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=16).save_pretrained(folder)
    return folder


TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|image_pad|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def llava(folder: Path) -> Path:
    """A Llava that only answers with digits, for `transformers serve`."""
    spelling = tiny_qwen.tokenizer()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=spelling,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SMALL, image_size=32, patch_size=8),
        text_config=LlamaConfig(**SMALL, vocab_size=len(spelling), max_position_embeddings=8192),
        image_token_index=spelling.convert_tokens_to_ids("<|image_pad|>"),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    others = sorted({*range(len(spelling))} - {*spelling.convert_tokens_to_ids(list("01234"))})
    model.generation_config = GenerationConfig(suppress_tokens=others, pad_token_id=spelling.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def hps_v3(folder: Path, base: Path) -> tuple[Qwen2VLForConditionalGeneration, nn.Sequential]:
    """HPSv3.safetensors by its published key names; returns what is in it."""
    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = len(tiny_qwen.tokenizer()) + 1
    model = Qwen2VLForConditionalGeneration(config).eval()
    head = nn.Sequential(nn.Linear(32, 12), nn.ReLU(), nn.Dropout(0.05), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    for weight in head.parameters():
        nn.init.normal_(weight)

    def published(key: str) -> str:
        """As transformers 4.45 named them."""
        return key.removeprefix("model.") if ".visual." in key else key.replace("model.language_model.", "model.")

    weights: dict[str, Tensor] = {published(key): value for key, value in model.state_dict().items()}
    weights |= {f"rm_head.{key}": value for key, value in head.state_dict().items()}
    save_file({key: value.clone() for key, value in weights.items()}, folder / "HPSv3.safetensors", {"format": "pt"})
    return model, head.eval()
