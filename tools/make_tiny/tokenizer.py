"""A small byte-level BPE of CLIP's kind: any text has tokens, the captions' words have one each."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

from tools.make_tiny.recipe import TokenizerRecipe

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def train_tokenizer(captions: Iterable[str], recipe: TokenizerRecipe, folder: Path) -> CLIPTokenizer:
    """Write a tokenizer learnt from `captions` to `folder` and return it as loaded from there."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The order of CLIP's vocabulary: bytes, bytes that end a word, merges, the two specials. The trainer leaves out
    # the bytes that end no caption's word; they are put in, or other texts would lose them.
    letters = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    # CLIP's own normaliser and word splitting, around an empty vocabulary.
    learner = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learnt = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    merges = learnt[: recipe.vocab_size - len(letters) - 2]
    names = [*letters, *("".join(pair) for pair in merges), START, END]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=recipe.context_tokens)
    tokenizer.save_pretrained(folder)
    # Not read by transformers 5, but by exporters and by everything that reads Stable Diffusion's own folder.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n", encoding="utf-8"
    )
    loaded = CLIPTokenizer.from_pretrained(folder)
    # transformers 5 can come up with a vocabulary of two tokens and say nothing.
    assert len(loaded) == len(vocabulary), f"loaded {len(loaded)} tokens, wrote {len(vocabulary)}"
    return loaded
