"""Whether a base may know the language of texts, told by how its tokenizer cuts them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORD = re.compile(r"[^\W\d_]+")
_FEW_WORDS, _MANY_WORDS = 100, 20_000  # words from which a language can be told
_KNOWN_BYTES, _UNKNOWN_SHARE = 3.0, 0.05


def language_warnings(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """Return a warning where words fall to pieces: the base has hardly learnt from such texts.

    Pieces are measured in bytes, of which other alphabets have more for each letter: 4 to 5 in a language that the base
    knows, 2 to 3 in another one.
    """
    words = [word for text in texts for word in _WORD.findall(text)][:_MANY_WORDS]
    if len(words) < _FEW_WORDS:
        return []
    pieces = [piece for ids in tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"] for piece in ids]
    size = sum(len(word.encode()) for word in words) / max(1, len(pieces))
    unknown = pieces.count(tokenizer.unk_token_id) / max(1, len(pieces))
    if size >= _KNOWN_BYTES and unknown <= _UNKNOWN_SHARE:
        return []
    seen = f"cuts these texts into pieces of {size:.1f} bytes, where 4 to 5 are usual"
    if unknown > _UNKNOWN_SHARE:
        seen = f"reads {unknown:.0%} of these texts as unknown"
    return [f"the base's tokenizer {seen}: it may not know their language; --base names another base"]
