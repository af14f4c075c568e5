"""Tokens are read as bytes of the text that they are."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loraxs_search.serve.bodies import read_tokens
from loraxs_search.tasks.kinds import TokenLogprobs


def byte_level():
    """As GPT-2, Llama 3 and Qwen: each character that is not ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def sentence_piece():
    """As Llama 2: a space stands before the text, and characters that are no tokens are bytes."""
    tokens = ["<unk>", "▁", "a", "é", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(parts)
    return raw


def whole_words():
    words = ["é", "你", "aa", "a", "🙂a", "[UNK]"]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw


@pytest.mark.parametrize("make", [byte_level, sentence_piece, whole_words])
def test_tokens_are_the_bytes_of_the_text(make):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="[END]")
    ids = [*tokenizer("a é 你 a aa", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    tokens = read_tokens(tokenizer, [TokenLogprobs(own, -1.0, {own: -1.0}) for own in ids], text)
    assert b"".join(token.content for token in tokens).decode() == text == "a é 你 a aa"
    assert all(token.likeliest == ((token.content, -1.0),) for token in tokens)
    before = b""
    for token in tokens:
        assert token.offset == len(before.decode(errors="ignore"))
        before += token.content
    assert (tokens[-1].content, tokens[-1].offset) == (b"", len(text))


def test_tokens_behind_a_stop_string_are_left_out():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    ids = tokenizer("a é!b")["input_ids"]
    tokens = read_tokens(tokenizer, [TokenLogprobs(own, -1.0, {}) for own in ids], "a é")
    assert [(token.content, token.offset) for token in tokens] == [(b"a", 0), (b" ", 1), (b"\xc3", 2), (b"\xa9", 2)]
