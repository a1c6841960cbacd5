"""The embedded models' tokenizers: whole words of the world's prompts, letters for everything else.

Byte-pair files as CLIP's and a Unigram model as T5's, so that the stock classes load them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from customized_grpo.embedded.places import PLACES
from customized_grpo.embedded.scenes import ACCESSORIES, POSITIONS
from customized_grpo.embedded.subjects import COLOURS, Subject, sprites

CLIP_LENGTH, T5_LENGTH = 32, 24
#: Words of DreamBench's prompts that the world has no image of, and its classes.
DREAMBENCH_WORDS = (
    "eiffel tower ocean milk mirror sidewalk crowded white rug shiny wet cube shaped monocle chef firefighter police "
    "outfit wizard orange black background"
)
DREAMBENCH_CLASSES = (
    "backpack", "stuffed animal", "bowl", "can", "candle", "cat", "clock", "sneaker", "dog", "toy", "boot", "glasses",
    "cartoon", "teapot", "vase",
)  # fmt: skip


def vocabulary() -> list[str]:
    """Return every word of a prompt, sorted; the order is part of the shipped tokenizers."""
    phrases = [phrase for phrase, _ in PLACES.values()] + [phrase for _, phrase in POSITIONS.values()]
    phrases += [phrase for phrase, _, _ in ACCESSORIES.values()] + list(COLOURS) + ["a an wearing subject photo of the"]
    phrases += [Subject(i).word for held in (False, True) for i in sprites(held_out=held)]
    phrases += [DREAMBENCH_WORDS, *DREAMBENCH_CLASSES]
    return sorted({word for phrase in phrases for word in re.findall(r"[a-z]+", phrase.lower())})


def clip_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer; every call gives the same ids."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        # Every letter alone and as an ending, so that an unknown word is spelt rather than lost. Endings are listed:
        # the trainer would number those that it finds in an order that changes from call to call.
        special_tokens=[f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz0123456789,.-'"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(vocabulary())], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    vocab = dict(state["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in state["merges"]], model_max_length=CLIP_LENGTH)


def load_words(model: Any, tokenizer: CLIPTokenizer) -> None:
    """Sort the token embeddings of a CLIP model, which was trained with `tokenizer`, by this file's token ids."""
    rows, ids = tokenizer.get_vocab(), clip_tokenizer().get_vocab()
    embeddings = model.get_input_embeddings().weight
    embeddings.data = embeddings[[rows[token] for token in sorted(ids, key=ids.__getitem__)]].detach()


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -4.0) for word in vocabulary() if len(word) > 1] + [("▁a", -4.0)]
    pieces += [(character, -10.0) for character in "abcdefghijklmnopqrstuvwxyz0123456789,.'-"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
