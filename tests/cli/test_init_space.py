"""What stands in the space that `init` writes: comments, steps, lengths, and what was chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.rows import csv_of, drafted, texts
from support.said import Said
from support.spaces import QUICKSTART

from loraxs_search.search_space import load_space
from loraxs_search.shipped_spaces import schema_path

Say = Callable[..., Said]
PLAIN = csv_of()


COMMENTS = {
    "sequence-classification": ("the search goes by the first one", "tokens of a row; longer ones lose their ends"),
    "multiple-choice": (
        "the search goes by the first one",
        "tokens of both: a long prompt loses its beginning, an answer must fit",
    ),
    "text-generation": (
        "candidates go by the first one, running trials by the loss",
        "tokens of both: a long prompt loses its beginning, an answer must fit",
    ),
}


@pytest.mark.parametrize("kind", COMMENTS)
def test_comments_say_what_holds_for_the_kind_and_where_numbers_are_from(
    say: Say, rows_folder: Path, kind: str
) -> None:
    answers: list[object] = [i % 2 for i in range(60)] if kind != "text-generation" else ["so so", *["well"] * 59]
    rows = [{"text": t, "answer": a, "choices": [t, "no"]} for t, a in zip(texts(60), answers, strict=True)]
    if kind != "multiple-choice":
        rows = [{name: row[name] for name in ("text", "answer")} for row in rows]
    content = "\n".join(map(json.dumps, rows))
    said = drafted(say, "rows.jsonl", content, "--kind", kind, "--base", QUICKSTART["id"], "--out", "my rows.yaml")
    assert said.code == 0, said.err
    lines = Path("my rows.yaml").read_text().splitlines()
    comments = {line.partition(":")[0].strip(): line.partition("  # ")[2] for line in lines if "  # " in line}
    assert (comments["metrics"], comments["max_length"]) == COMMENTS[kind]
    passes = 11 if kind == "sequence-classification" else 4  # 32 steps of 16 rows, or 24 of 8, of 48 training rows
    assert comments["max_steps"] == f"batches: about {passes} passes over the training rows"
    if kind == "text-generation":
        assert comments["generation"] == "the longest answer has 2"
    assert "# Check:  loraxs-search check 'my rows.yaml' --data" in lines
    assert said.err.splitlines()[-2:] == [
        "next: loraxs-search check 'my rows.yaml' --data",
        "then: loraxs-search launch 'my rows.yaml'",
    ]


@pytest.mark.parametrize(
    ("rows", "steps", "every", "scored", "said"),
    [
        (200, 104, 26, None, "about 10 passes"),
        (1_500, 304, 76, None, "about 4 passes"),
        (7_000, 1_056, 132, None, "about 3 passes"),
        (100_000, 2_000, 250, 1_000, "0.4 of a pass over the training rows; a whole one is 5000"),
    ],
)
def test_steps_fit_the_rows(
    say: Say, rows_folder: Path, rows: int, steps: int, every: int, scored: int, said: str
) -> None:
    Path("rows.csv").write_text("text,label\n" + "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(rows)))
    assert say("init", "rows.csv", "--base", "no-such-org/no-such-base").ok
    space = load_space("./rows.yaml")
    assert (space.search.max_steps, space.search.report_every, space.task.validation_rows) == (steps, every, scored)
    assert said in Path("rows.yaml").read_text()


def test_check_says_how_often_trials_see_the_rows(say: Say, rows_folder: Path) -> None:
    assert drafted(say, "rows.csv", csv_of(200)).ok
    steps = load_space("./rows.yaml").search.max_steps
    assert "passes" not in say("check", "rows.yaml").ok
    assert (
        f"{steps} steps ({steps * 16 / 160:.1f} passes over the training rows)"
        in say("check", "rows.yaml", "--data").ok
    )


def test_options_and_long_answers_fit_the_space(say: Say, rows_folder: Path) -> None:
    """A prompt may lose its beginning; an option or an answer that does not fit would be refused at launch."""
    long = "so " * 90
    rows = [{"text": t, "answer": 0, "choices": [t, long if i == 37 else "no"]} for i, t in enumerate(texts(300))]
    chosen = ("--base", QUICKSTART["id"], "--text", "text", "--label", "answer")
    assert drafted(say, "choose.jsonl", "\n".join(map(json.dumps, rows)), *chosen).ok
    rows = [{"text": t, "answer": long if i == 37 else "no"} for i, t in enumerate(texts(300))]
    assert drafted(say, "write.jsonl", "\n".join(map(json.dumps, rows)), *chosen, "--kind", "text-generation").ok
    lengths = [load_space(f"./{name}.yaml").task.max_length for name in ("choose", "write")]
    assert min(lengths) > 90


def test_what_is_not_counted_is_not_written(say: Say, rows_folder: Path) -> None:
    rows = "\n".join(json.dumps({"question": t, "answer": t[::-1]}) for t in texts(60))
    assert drafted(say, "rows.jsonl", rows, "--base", "no-such-org/no-such-base").ok
    assert "generation:" not in Path("rows.yaml").read_text()


def test_editors_are_led_to_the_schema(say: Say, rows_folder: Path) -> None:
    assert drafted(say, "rows.csv", PLAIN).ok
    (line,) = (line for line in Path("rows.yaml").read_text().splitlines() if "yaml-language-server" in line)
    assert line == f"# yaml-language-server: $schema={schema_path()}"
    assert schema_path().is_file()


def test_what_is_chosen_stands_in_the_space(say: Say, rows_folder: Path) -> None:
    chosen = ("--name", "films", "--metric", "macro_f1", "--max-length", "40", "--out", "other/films.yaml")
    Path("other").mkdir()
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos,neg", "--base", QUICKSTART["id"], *chosen).ok
    space = load_space("other/films.yaml")
    assert (space.task.name, space.task.labels, space.task.max_length) == ("films", ("pos", "neg"), 40)
    assert space.task.metrics[0] == space.task.metric == "macro_f1"


def test_of_many_rows_those_that_are_cut_are_estimated_from_a_sample(say: Say, rows_folder: Path) -> None:
    words = [f"{own} " + " ".join(["word"] * (40 * (i % 100 < 30))) for i, own in enumerate(texts(6000))]
    rows = "text,label\n" + "".join(f"{own},{'ab'[i % 2]}\n" for i, own in enumerate(words))
    said = drafted(say, "rows.csv", rows, "--max-length", "32")
    (warning,) = [line for line in said.err.splitlines() if "longer than max_length" in line]
    assert 1600 < int(warning.split("about ")[1].split()[0].replace(",", "")) < 2000
