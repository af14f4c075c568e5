"""A newcomer with a file of their own, in whatever state: `init` gives a space whose rows can be read, or says what is
wrong, in which line, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import csv_of, texts

from loraxs_search.errors import LoraxsError
from loraxs_search.tasks.prepared import load_data

PLAIN = csv_of()


# ---- what gives a search ---------------------------------------------------------------------------------------------
NUMBERED = "\n".join(f"{number or ''},{line}" for number, line in enumerate(PLAIN.splitlines()))
PAIRS = [f"{text}\t{text}\t{i % 3}" for i, text in enumerate(texts(60))]
ASKED = [{"question": text, "answer": text[::-1]} for text in texts(60)]
CHOICES = [{"question": t, "choices": [t[:3], "no", t[3:]], "answer": i % 3} for i, t in enumerate(texts(60))]
GOOD: dict[str, tuple[str, str | bytes, dict[str, Any]]] = {
    "semicolons, and commas in texts": ("rows.csv", csv_of(separator=";").replace(" the", ", the"), {}),
    "Latin-1": ("rows.csv", PLAIN.replace("fine", "süß").encode("latin-1"), {}),
    "an index without a name": ("rows.csv", NUMBERED, {}),
    "commas at the ends": ("rows.csv", PLAIN.replace("\n", ",,\n"), {}),
    "named columns": ("rows.csv", csv_of(header="a,b"), {"text": ("a",), "label": "b"}),
    "rare labels that are meant": ("rows.csv", PLAIN + "so,Pos\n", {"labels": ("neg", "pos", "Pos")}),
    "pairs": ("rows.tsv", "\n".join(["premise\thypothesis\tlabel", *PAIRS]), {}),
    "answers in words": ("rows.jsonl", "\n".join(json.dumps(row) for row in ASKED), {}),
    "options": ("rows.jsonl", "\n".join(json.dumps(row) for row in CHOICES), {}),
}  # fmt: skip
KINDS = {"answers in words": "text-generation", "options": "multiple-choice"}


def test_rows_give_a_space_whose_rows_can_be_read(drafted):
    for variant, (name, content, choices) in GOOD.items():
        task = drafted(name, content, **choices).task
        assert task.kind == KINDS.get(variant, "sequence-classification"), variant
        assert len(load_data(task)["train"]) in (48, 49), variant


# ---- what does not ---------------------------------------------------------------------------------------------------
BAD = {
    "an empty label": (PLAIN + "one more,\n", "Each row of rows.csv must have a label, but line 62 has none."),
    "nan as label": (csv_of(labels=("0", "1")) + "so,nan\n", "must be a number, but got 'nan' (line 62)"),
    "N/A as label": (PLAIN + "so,N/A\n", "'N/A' (line 62): is the answer missing?"),
    "a zero-width space": (csv_of(labels=("a", "b", "a\u200b", "b")), "'a\\u200b' (line 4, "),
    "postcodes": (csv_of(labels=[f"{i:05}" for i in range(5000, 65000, 1000)]), "has 60 different values in 60 rows"),
    "a misspelt label": (csv_of(labels=("worst", "best")) + "so,wrost\n", "'wrost' (line 62): did you mean 'worst'?"),
    "several faults": (PLAIN + ",pos\nso,\nso,Neg\n", "rows.csv has 3 faults:"),
    "no header": (PLAIN.partition("\n")[2], "must name the columns, but looks like a row: 'neg' is also a value"),
    "one class": (csv_of(labels=("pos",)), "must have two different answers at least, but has only 'pos'"),
    "a missing column": ("text\n" + "\n".join(texts(40)), "one with answers, but has only 'text'"),
    "six rows": (csv_of(6), "rows.csv must have at least 10 rows, since a tenth each is set aside"),
    "two columns of texts": (
        "first,second,label\n" + "\n".join(f"{t},{t},{i % 2}" for i, t in enumerate(texts(60))),
        "The column with texts must be known, but may be any of first, second.",
    ),
}  # fmt: skip


def test_what_is_wrong_is_reported_with_its_line_and_a_remedy(drafted):
    for content, message in BAD.values():
        with pytest.raises(LoraxsError) as caught:
            drafted("rows.csv", content)
        assert message in caught.value.message
        assert caught.value.hint
        assert not Path("rows.yaml").exists()
