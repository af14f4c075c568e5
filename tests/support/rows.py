"""Rows as people have them: short made-up texts, each with one of some labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from support.shell import Said

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]  # of words that are names
_WORDS = (
    *("a", "fine", "slow", "warm", "odd", "film", "about", "the", "sea", "and"),
    *("three", "brothers", "who", "never", "quite", "come", "home", "again"),
)


def texts(number: int) -> list[str]:
    """Return different texts of a few words."""
    return [" ".join(_WORDS[(i * 7 + j) % len(_WORDS)] for j in range(3 + i % 5)) + f" {i}" for i in range(number)]


def csv_of(
    rows: int = 60, header: str = "text,label", separator: str = ",", labels: Sequence[str] = ("neg", "pos")
) -> str:
    """Return a file of texts and labels in turn, with a header."""
    lines = [f"{text}{separator}{labels[i % len(labels)]}" for i, text in enumerate(texts(rows))]
    return "\n".join([header.replace(",", separator), *lines]) + "\n"


def drafted(say: Callable[..., Said], name: str, content: str | bytes, *options: str) -> Said:
    """Write a file of rows here, and run `init` on it."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return say("init", name, *options)
