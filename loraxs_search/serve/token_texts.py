"""The tokens of a text, as what each adds to its bytes: a character may be made of several tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from loraxs_search.tasks.kinds import TokenLogprobs

_SPACE = "▁"  # in SentencePiece's tokens


@dataclass(frozen=True)
class LikelyToken:
    """A token of a text.

    Args:
        content: What it adds to the text, in UTF-8; nothing if it is no text, as an end token.
        offset: Characters of the text before it.
        likeliest: Other tokens in its place, the likeliest first.
    """

    content: bytes
    offset: int
    logprob: float
    likeliest: tuple[tuple[bytes, float], ...]


class TokenReader:
    """Reads tokens as bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._no_text = {token for token, own in tokenizer.added_tokens_decoder.items() if own.special}
        self._bytes = {character: byte for byte, character in bytes_to_unicode().items()}
        # Tokenizers show how they write bytes and spaces in what they make of these two characters.
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(" é", add_special_tokens=False)["input_ids"])
        self._has_bytes, self._has_spaces = "Ã©" in "".join(pieces), _SPACE in "".join(pieces)

    def read(self, tokens: Sequence[TokenLogprobs], text: str) -> list[LikelyToken]:
        """Return tokens as bytes of the text that they are, without those behind a stop string."""
        found, before, offset = list[LikelyToken](), list[int](), 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for it in tokens:
            content = self._content(it.token, before)
            if content and offset >= len(text):
                break
            likeliest = tuple((self._content(token, before), value) for token, value in it.likeliest.items())
            found.append(LikelyToken(content, offset, it.logprob, likeliest))
            offset += len(decoder.decode(content))
            before.append(it.token)
        return found

    def _content(self, token: int, before: Sequence[int]) -> bytes:
        """Return what a token adds to the text of the tokens before."""
        if token in self._no_text:
            return b""
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if self._has_bytes:
            known = [self._bytes.get(character) for character in piece]
            return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if not self._has_spaces:
            last = self._decode(before[-1:])
            return self._decode([*before[-1:], token])[len(last) :].encode()
        if piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:-1])
        content = piece.replace(_SPACE, " ")
        if all(own in self._no_text for own in before) and not self._decode([token]).startswith(" "):
            content = content.removeprefix(" ")  # a text does not begin with the space of its first word
        return content.encode()

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
