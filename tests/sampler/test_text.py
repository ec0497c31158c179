from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from sampler.bundle import Bundle
from sampler.errors import SamplerError
from sampler.text import Prompts

TINY = Path(__file__).parents[2] / "models" / "tiny" / "tokenizer"
ODD_PROMPTS = (
    "simulated breast ultrasound, benign",
    "",
    "   spaces\tand\nlines  ",
    "a" * 400,
    "word " * 200,
    "Grüße, 東京 \U0001fac0 e\u0301 ﬁ",
    "it's 12.5 mm <|endoftext|> more",
    "<|startoftext|>",
    "UPPER lower 0123",
)


def test_tokens_are_those_of_transformers(opened: Bundle) -> None:
    about = opened.manifest.values["tokenizer"]
    ours = Prompts(opened.path(about["file"]), about["length"], about["pad"])
    theirs = CLIPTokenizer.from_pretrained(str(TINY))
    assert len(theirs) == about["vocabulary_size"]
    expected = theirs(list(ODD_PROMPTS), padding="max_length", max_length=about["length"], truncation=True)["input_ids"]
    assert ours.tokens(ODD_PROMPTS).tolist() == expected
    for prompt, tokens in zip(ODD_PROMPTS, expected, strict=True):
        assert ours.tokens([prompt]).tolist() == [tokens]


def test_what_does_not_fit_is_counted(opened: Bundle) -> None:
    about = opened.manifest.values["tokenizer"]
    ours = Prompts(opened.path(about["file"]), about["length"], about["pad"])
    assert ours.num_cut("breast") == 0
    # two of the tokens are its ends
    assert ours.num_cut("1 " * about["length"]) == 2


def test_what_is_no_tokenizer(tmp_path: Path, opened: Bundle) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SamplerError, match="is not a tokenizer"):
        Prompts(tmp_path / "tokenizer.json", 24, 0)
    with pytest.raises(SamplerError, match="has no token 99999"):
        Prompts(opened.path("tokenizer.json"), 24, 99999)
