"""The embedded models' tokenizers: whole words for what the world's prompts say, letters for all else.

Byte-pair files as CLIP's and a Unigram model as T5's, so that the stock classes load them.
"""

from __future__ import annotations

import json
import re

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from customized_grpo.embedded.places import PLACES
from customized_grpo.embedded.scenes import ACCESSORIES, POSITIONS
from customized_grpo.embedded.subjects import COLOURS, Subject, sprites

CLIP_LENGTH = 32
T5_LENGTH = 24
#: The words of DreamBench's prompts that the world has no picture of, and its classes.
DREAMBENCH_WORDS = [
    "eiffel",
    "tower",
    "ocean",
    "milk",
    "mirror",
    "sidewalk",
    "crowded",
    "white",
    "rug",
    "shiny",
    "wet",
    "cube",
    "shaped",
    "monocle",
    "chef",
    "firefighter",
    "police",
    "outfit",
    "wizard",
    "orange",
    "black",
    "background",
]
DREAMBENCH_CLASSES = [
    "backpack",
    "stuffed animal",
    "bowl",
    "can",
    "candle",
    "cat",
    "clock",
    "sneaker",
    "dog",
    "toy",
    "boot",
    "glasses",
    "cartoon",
    "teapot",
    "vase",
]


def vocabulary() -> list[str]:
    """Every word of a prompt, sorted; the order is part of the shipped tokenizers."""
    phrases = [phrase for phrase, _ in PLACES.values()] + [phrase for _, phrase in POSITIONS.values()]
    phrases += [phrase for phrase, _, _ in ACCESSORIES.values()] + list(COLOURS) + ["a an wearing subject photo of the"]
    phrases += [Subject(i).word for held in (False, True) for i in sprites(held_out=held)]
    phrases += DREAMBENCH_WORDS + DREAMBENCH_CLASSES
    return sorted({word for phrase in phrases for word in re.findall(r"[a-z]+", phrase.lower())})


def clip_tokenizer() -> CLIPTokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    letters = [chr(ord("a") + i) for i in range(26)] + list("0123456789")
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # Every letter alone and as an ending, so that an unknown word is spelt rather than lost.
    tokenizer.train_from_iterator([" ".join(vocabulary()), " ".join(letters), ",", ".", "-", "'"], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    vocab = dict(state["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -4.0) for word in vocabulary() if len(word) > 1] + [("▁a", -4.0)]
    pieces += [(character, -10.0) for character in "abcdefghijklmnopqrstuvwxyz0123456789,.'-"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


if __name__ == "__main__":
    for tokenizer in (clip_tokenizer(), t5_tokenizer()):
        for text in (
            "a purple bird wearing a red hat with a tree and autumn leaves in the background on the left",
            "Zebra",
        ):
            ids = tokenizer(text).input_ids
            print(len(tokenizer), len(ids), tokenizer.convert_ids_to_tokens(ids))
