"""A LlavaForConditionalGeneration of few and random weights that answers with digits."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def save_vlm(folder: Path) -> Path:
    """The folder, with a model that decodes greedily and among the digits 0 to 4 alone, by its generation config."""
    special = ["<pad>", "<s>", "</s>", "<image>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    spelling = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    spelling.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    spelling.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelling,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of what is left as it is made
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=8),
                text_config=LlamaConfig(**small, **ids, vocab_size=len(vocabulary), max_position_embeddings=8192),
                image_token_index=vocabulary["<image>"],
                vision_feature_layer=-1,
            )
        )
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            # What images say is made loud: text outnumbers it.
            gain = 40.0 if "projector" in name else 2.0
            torch.nn.init.normal_(weight, 0, gain / weight[0].numel() ** 0.5, generator=generator)
    digits = tokenizer.convert_tokens_to_ids(list("01234"))
    model.lm_head.weight.data[digits] *= 5  # so that digits are what it likes to say
    others = [i for i in range(len(vocabulary)) if i not in digits]
    model.generation_config = GenerationConfig(do_sample=False, suppress_tokens=others, **ids)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
