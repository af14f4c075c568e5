"""The text of tokens that come one by one, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_WINDOW = 12  # tokens that are decoded together; a window is decoded anew with each token
_INCOMPLETE = "\ufffd"  # what stands for the first bytes of a character


class GrowingText:
    """Decodes tokens as they come, at a cost that does not grow with the text.

    Tokens are decoded with some before them: what a token adds depends on those.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._start, self._known = 0, ""  # where the window begins, and the text of it that is in `text` already
        self.text = ""

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Decode what is new of a row's tokens, and return what that adds to the text.

        Args:
            tokens: All tokens of the row.
            last: Whether none will follow: then the first bytes of a character are decoded too.
        """
        window = self._decode(tokens[self._start :])
        if window.endswith(_INCOMPLETE) and not last:
            return ""
        piece = window[len(self._known) :]
        self.text, self._known = self.text + piece, window
        if len(tokens) - self._start >= _WINDOW and not last:
            self._move(tokens, len(tokens) - _WINDOW // 4)
        return piece

    def _move(self, tokens: Sequence[int], start: int) -> None:
        """Begin a new window, unless it would begin inside a character or with nothing to see."""
        known = self._decode(tokens[start:])
        if known.strip() and _INCOMPLETE not in known and self._known.endswith(known.lstrip()):
            self._start, self._known = start, known

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # of one row
        return text


def first_stop(text: str, stop: Sequence[str], added: int) -> int | None:
    """Return where the first of some stop strings begins, if one ends within the last `added` characters."""
    found = [at for word in stop if (at := text.find(word, max(0, len(text) - added - len(word) + 1))) >= 0]
    return min(found, default=None)


def unsure(text: str, stop: Sequence[str]) -> int:
    """Return how many of the last characters may be the beginning of a stop string."""
    longest = min(len(text), max((len(word) for word in stop), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(word.startswith(text[-n:]) for word in stop)), 0)
