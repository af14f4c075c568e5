"""Sentences with names of people, places and firms in them, as rows of words and IOB2 tags."""

from __future__ import annotations

import random
from typing import Any

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
_NAMES = {
    "PER": [
        *("Ada Lovelace", "Grace Hopper", "Alan Turing", "Emmy Noether", "Carl Gauss", "Rosalind Franklin", "Euler"),
        *(
            "Maria Agnesi",
            "Niels Bohr",
            "Lise Meitner",
            "Kurt Gödel",
            "Hypatia",
            "Barbara Liskov",
            "Edsger W. Dijkstra",
        ),
    ],
    "LOC": [
        *("Paris", "New York", "São Paulo", "Lake Como", "Cambridge", "Addis Ababa", "Kyoto", "Cape Town", "Oslo"),
        *("Rio de Janeiro", "Vienna", "Göttingen", "the Hague", "Lima", "Mumbai"),
    ],
    "ORG": [
        *("Siemens", "Bell Labs", "General Electric", "Nestlé", "Royal Dutch Shell", "Sony", "Acme Inc.", "Toyota"),
        *("Bank of England", "Air France", "Petrobras", "Infosys"),
    ],
}
_FRAMES = [
    *(
        "{PER} works for {ORG} in {LOC} .",
        "In {LOC} , {PER} met {PER} .",
        "{ORG} opened an office in {LOC} .",
    ),
    *("Last year {PER} left {ORG} .", "{PER} was born in {LOC} and died in {LOC} .", "The weather was fine all week ."),
    *("Shares of {ORG} fell , while {ORG} gained two per cent .", "Nobody answered the letter .", "Who is {PER} ?"),
    *(
        "A train from {LOC} to {LOC} was late .",
        '" {ORG} will grow " , {PER} told reporters .',
        "{PER} won .",
    ),
]


def entity_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of `tokens` and `tags`, no two alike."""
    draw, rows, seen = random.Random(seed), list[dict[str, Any]](), set[str]()
    while len(rows) < count:
        tokens, tags = list[str](), list[str]()
        for part in draw.choice(_FRAMES).split():
            kind = part.strip("{}")
            words = draw.choice(_NAMES[kind]).split() if part.startswith("{") else [part]
            tokens += words
            tags += [f"{'I' if i else 'B'}-{kind}" if part.startswith("{") else "O" for i in range(len(words))]
        if (text := " ".join(tokens)) not in seen:
            seen.add(text)
            rows.append({"tokens": tokens, "tags": tags})
    return rows
