"""Where some words stand in a text, as words of their own. Light."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import regex

from loraxs_search.tasks._texts import composed

# Scripts that write no spaces between words: a word of theirs begins and ends anywhere.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[\w--{_UNSPACED}]"
# Digits are no part of a longer number, nor of a negative one: 5 is not in 1.5, 1,500 or -5.
_BEFORE = rf"(?<!{_LETTER})(?!(?<=[0-9][.,]|(?<!\w)[-\u2212])[0-9])"
_BEHIND = rf"(?!{_LETTER})(?!(?<=[0-9])[.,][0-9])"


_WORD = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[^\s{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Return what stands between white space; of scripts that write none between words, each character."""
    return text.split() if text.isascii() else _WORD.findall(text)


@lru_cache(maxsize=4096)
def _pattern(phrases: tuple[str, ...]) -> regex.Pattern[str]:
    words = ([regex.escape(word) for word in composed(phrase).split()] for phrase in phrases)
    each = "|".join("(" + r"\s+".join(own) + ")" for own in words)
    # (?-f) folds letter by letter: a sharp s is another letter than two of them, which V1 takes it for.
    return regex.compile(f"(?V1)(?-f){_BEFORE}(?:{each}){_BEHIND}", regex.IGNORECASE)


def first_of(phrases: Sequence[str], text: str) -> int | None:
    """Return which phrase is the first in a text, whatever its case; where two begin alike, the first of the two."""
    match = _pattern(tuple(phrases)).search(composed(text))
    return None if match is None or match.lastindex is None else match.lastindex - 1
