"""Prompts as tokens, with nothing left to how the tokenizer's file was saved."""

# B prompts, L tokens of each

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sampler.errors import SamplerError


class Prompts:
    """The tokenizer of a bundle: every prompt becomes exactly `length` tokens."""

    def __init__(self, path: Path, length: int, pad: int) -> None:
        """Open tokenizer.json. length: tokens of a prompt, its two ends included. pad: the token that fills it up.

        Raises: SamplerError if the file is no tokenizer's, or does not know the token.
        """
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise SamplerError(f"{path} is not a tokenizer: {error}") from error
        pad_token = self._tokenizer.id_to_token(pad)
        if pad_token is None:
            raise SamplerError(f"{path} has no token {pad}, which is to fill prompts up; export the bundle again")
        # The file keeps what an earlier call happened to set.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length = length
        self._pad, self._pad_token = pad, pad_token

    def tokens(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Return the tokens of prompts, [B, L]; what does not fit is cut off before the end token."""
        self._tokenizer.enable_truncation(self.length)
        self._tokenizer.enable_padding(length=self.length, pad_id=self._pad, pad_token=self._pad_token)
        encoded = self._tokenizer.encode_batch(list(prompts))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        return np.array([one.ids for one in encoded], np.int64).reshape(len(prompts), self.length)

    def num_cut(self, prompt: str) -> int:
        """Return how many tokens of a prompt do not fit."""
        return max(0, len(self._tokenizer.encode(prompt).ids) - self.length)
