"""Text generation: rows and references, what is refused and warned of."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.bases import CHAT, THINKING, characters
from support.text_tasks import NUMBER, SUMS, broken_laws, refused, writing_task
from transformers import GenerationConfig

from loraxs_search.errors import LoraxsError, TaskDataError
from loraxs_search.tasks.kinds import ForwardRequest, Generated, Ragged, kind_of, text_generation
from loraxs_search.tasks.kinds.text_generation import Extraction
from loraxs_search.tasks.prepared import first_rows, load_data, prepare, served

TURN = {"prompt": None, "messages": [{"role": "user", "content": "{q}"}], "answer": "{a}"}
SYSTEM = TURN | {"messages": [{"role": "system", "content": "{n}"}, {"role": "user", "content": "{q}"}]}


@pytest.fixture
def make(write):
    """A task on a few rows, in all three splits."""
    return partial(writing_task, write)


def row(**changes):
    return {"q": "x", "a": "x", "n": "1"} | changes


def labels_of(task):
    return load_data(task)["test"].labels.tolist()


def find(text, form="text", **extract):
    return Extraction.model_validate({"as": form, **extract}).find(text)


# ---- rows ------------------------------------------------------------------------------------------------------------
def test_labels_are_references_in_canonical_form(make):
    rows = load_data(make(**NUMBER))["train"]
    assert rows.texts == ["Two and two?", "Six and six?", "One and six?"]
    assert rows.extras == {"answer": [" The answer is 4", " The answer is 12", " The answer is 7"]}
    assert (rows.labels.tolist(), rows.labels.dtype.kind) == (["4", "12", "7"], "O")
    assert labels_of(make()) == ["The answer is 4", "The answer is 12", "The answer is 7"]
    assert labels_of(make(extract=NUMBER["extract"])) == ["4", "12", "7"]
    partly = make(answer=" {a} {n}", test=[row(n="")] * 3)  # hidden are answers of which nothing is there
    assert labels_of(partly) == ["x"] * 3


def test_the_answer_and_its_end_are_learnt_and_shown(make):
    data = prepare(make(), characters())
    rows, tokenizer = data.encoded("train"), data.tokenizer
    ids, positions, targets = rows.ids.row(0), rows.positions.row(0), rows.targets.row(0)
    assert tokenizer.decode(ids) == "Two and two? The answer is 4"
    assert tokenizer.decode(targets) == " The answer is 4</s>"
    assert ids[positions[0]] == tokenizer.convert_tokens_to_ids("?")
    assert ids[positions[1:]].tolist() == targets[:-1].tolist()
    shown = {"text": "Two and two?[[ The answer is 4</s>]]", "answer": "The answer is 4"}
    assert first_rows(data, 1) == [shown]
    most = max(len(rows.whole_row(number)[0]) for number in range(3))
    assert data.report.tokens["train"]["longest"] == most
    cut = prepare(make(max_length=most - 1), characters()).report
    assert cut.cut["train"] > 0
    assert cut.tokens["train"]["longest"] == most, "longer than `max_length`, since rows are cut"
    chat = prepare(make(**TURN), characters(chat=CHAT))
    rows = chat.encoded("train")
    assert chat.tokenizer.decode(rows.ids.row(0)) == "<|user|>Two and two<|end|><|assistant|>The answer is 4"
    assert chat.tokenizer.decode(rows.targets.row(0)) == "The answer is 4<|end|>"


# ---- what is refused -------------------------------------------------------------------------------------------------
def test_keys_that_make_no_sense_are_refused(make):
    for keys, message in [
        ({"prompt": "why?"}, "`prompt` must name a column in braces"),
        ({"extract": {"after": "x", "regex": "(y)"}}, "`extract` must have one of: after, regex, but got both"),
        ({"generation": {"seed": 1, "temperature": 0.0}}, "`generation.seed` must stand beside a `temperature` above"),
    ]:
        assert message in broken_laws(make(**keys))


STOPS = {"generation": {"max_new_tokens": 20, "stop": ["answer is"]}}
NO_ANSWER = "each row must have an answer, but"


def test_rows_that_do_not_fit_are_refused(make, monkeypatch):
    monkeypatch.setattr("loraxs_search.tasks.kinds.text_generation.MATCH_SECONDS", 0.01)
    ages = {"extract": {"regex": "((?:a|aa)+|is .+)$"}}
    for rows, keys, said in [
        ([row(a=" \n"), row(a=" \n")], {}, "rows.jsonl has rows without: line 4 and 1 more row."),
        ([row(a="The answer is (C)", n="C")], NUMBER, "rows.jsonl it finds nothing in 'C' (line 4)"),
        ([row(a="Nobody knows")], {"extract": NUMBER["extract"]}, "' Nobody knows' (line 4)"),
        ([row(a="a" * 60 + "!")], ages, "seconds finds nothing"),
        ([row(q=" ", n="")], {}, "each row must have text, but"),
        ([row(q=float("nan"))], {}, "`q` must be finite in each row, but"),
        ([], {**NUMBER, "test": [{"q": "x", "a": "x"}]}, "`reference.{n}` must be one of: "),
        ([], {**NUMBER, "test": [row(a="")]}, NO_ANSWER),  # with references it is no hidden one
        ([], {"test": [row(a="")] * 3}, "`a` of test rows must have answers"),
    ]:
        message = refused(make([*SUMS, *rows], **keys))
        assert said in message
        assert message.count(NO_ANSWER) in (0, 1 if "test" in keys else 3), "once for each split"
        assert not (NO_ANSWER in message and "extract" in message), "each fault once"


def test_what_people_should_know_of_their_rows_is_said(make):
    long = {"generation": {"max_new_tokens": 17}}
    ended = {"answer": " {a}##", "generation": {"max_new_tokens": 20, "stop": ["##"]}}
    for rows, keys, said in [
        ([row(a="no")], STOPS, ["3 of 4 train answers have the stop string 'answer is' in them"]),
        ([], {"prompt": "{q} {a}:"}, ["gives the answer away"]),
        ([], long, ["1 of 3 train answers have more than max_new_tokens=17 tokens, the"]),
        ([], {"answer": " {q} {a}", "generation": {"max_new_tokens": 40}}, []),
        ([], ended, []),  # it is learnt, and no part of what is compared
    ]:
        warnings = prepare(make([*SUMS, *rows], **keys), characters()).report.warnings
        assert all(any(part in warning for warning in warnings) for part in said)
        assert said or not warnings
    assert labels_of(make(**ended)) == [row["a"] for row in SUMS]


def test_what_does_not_fit_the_base_is_refused(make):
    endless = characters()
    endless.eos_token = None
    for keys, tokenizer, said in [
        ({"max_length": 500}, characters(), r"512 .*max_length=500"),
        ({}, endless, r"`generation\.stop`"),
        ({"rows": [*SUMS, row(a="so</s>")]}, characters(), r"</s> .* 'x\?' \(line 4\)"),
        (SYSTEM, characters(chat="{{ raise_exception('No system') }}"), "No system"),
    ]:
        with pytest.raises(TaskDataError, match=said):
            prepare(make(**keys), tokenizer)
    prepare(make(generation={"max_new_tokens": 9, "stop": ["zz"]}), endless)


# ---- requests --------------------------------------------------------------------------------------------------------
def answered(asking, texts, ended=True):
    """Answer the loss with 1 a row, and what is written with texts; return the scores and the `GenerateRequest`."""
    request, write, n = next(asking), None, len(texts)
    try:
        while True:
            if isinstance(request, ForwardRequest):
                size = len(request.rows)
                request = asking.send((torch.ones(size), torch.zeros(size, dtype=torch.int64)))
            else:
                write, tokens = request, Ragged.of([[1]] * n, np.int32)
                request = asking.send(Generated(texts, tokens, np.full(n, ended), np.full(n, 1.0, np.float32)))
    except StopIteration as stop:
        return stop.value, write


def test_what_is_written_is_scored_by_its_answer(make):
    data = prepare(make(**NUMBER), characters())
    texts = ["Well, The answer is $4.00.", "The answer is 13", "no"]
    scores, write = answered(data.kind.score(data, "test", np.array([0, 1, 2])), texts, ended=False)
    assert [data.tokenizer.decode(write.source.ids.row(i)) for i in range(2)] == ["Two and two?", "Six and six?"]
    assert (write.max_new_tokens, write.stop, write.sampling) == (20, (), None)
    assert scores.predictions.tolist() == ["4", "13", ""]
    measured = {"exact_match": 1 / 3, "unparsed": 1 / 3, "unended": 1.0, "loss": 3 / scores.counts.sum()}
    assert data.kind.measure_scores(scores, data.labels("test")) == pytest.approx(measured)
    generation = {"max_new_tokens": 5, "stop": ["z"], "temperature": 0.5, "top_p": 0.9, "seed": 3}
    data = prepare(make(generation=generation), characters())
    _, write = answered(data.kind.score(data, "test", np.array([0])), ["x"])
    assert (write.sampling.seed, write.sampling.temperature, write.sampling.top_p) == (3, 0.5, 0.9)
    assert write.stop == ("z",)


def test_a_prompt_that_is_scored_is_as_long_as_one_that_is_asked(make):
    rows = [{"q": "a" * size, "a": "b" * 9} for size in (3, 25, 40)]
    data = prepare(make(rows=rows, max_length=32), characters())
    _, write = answered(data.kind.base_alone(data, "test", np.arange(3), 0), ["x"] * 3)
    asked = data.kind.encode_questions([(row["q"],) for row in rows], data.tokenizer).ids
    assert [write.source.ids.row(i).tolist() for i in range(3)] == [asked.row(i).tolist() for i in range(3)]
    assert asked.lengths.tolist() == [4, 26, 31]
    assert data.lengths("test").max() <= 32  # with the answers, which are learnt


# ---- baselines ------------------------------------------------------------------------------------------------------
def shown(data, shots):
    """The prompt that the untouched base continues; its loss is taken of the same, with the answer."""
    asking = data.kind.base_alone(data, "test", np.array([2]), shots)
    read = next(asking).source
    write = asking.send((torch.ones(1), torch.zeros(1, dtype=torch.int64)))
    targets = read.targets.row(0)
    asked = data.tokenizer.decode(write.source.ids.row(0))
    assert read.ids.row(0)[read.positions.row(0)[1:]].tolist() == targets[:-1].tolist()
    assert data.tokenizer.decode(read.ids.row(0)) == asked + data.tokenizer.decode(targets[:-1])
    return asked


def test_worked_examples_stand_before_the_prompt_balanced_by_answer_and_always_the_same(make):
    data = prepare(make(), characters(begins=True))
    assert shown(data, 0) == "<s>One and six?"
    first, second, asked = shown(data, 2).removeprefix("<s>").split("\n\n")
    assert first != second
    assert {first, second} < {f"{row['q']}? {row['a']}" for row in SUMS}
    assert asked == "One and six?"
    # In a file that is sorted by its answers, with one that is rare.
    rows = [{"q": f"q{i}", "a": "no" if i < 80 else "yes" if i < 98 else "maybe", "n": "1"} for i in range(100)]
    data = prepare(make(rows), characters())
    asked = shown(data, 4)
    assert sorted(part.partition("? ")[2] for part in asked.split("\n\n")[:3]) == ["maybe", "no", "yes"]
    assert shown(data, 4) == asked
    assert asked.split("\n\n")[0] != "q0? no"
    # What does not fit loses its beginning.
    data = prepare(make([row(q=f"{i} " * 20) for i in range(9)], max_length=60), characters(begins=True))
    data.tokenizer.model_max_length = 90
    asked = shown(data, 4)
    assert (asked[:3], asked[-7:]) == ("<s>", "2 2 2 ?")
    assert len(data.tokenizer(asked, add_special_tokens=False)["input_ids"]) == 70


def test_worked_examples_are_turns_of_a_chat_and_a_system_message_stands_once_unless_it_is_the_rows(make):
    for template, thought in ((CHAT, ""), (THINKING, "::")):
        answer = f"<|assistant|>{thought}"
        data = prepare(make(**TURN), characters(chat=template))
        examples = [f"<|user|>{row['q']}<|end|>{answer}{row['a']}<|end|>" for row in SUMS]
        assert shown(data, 1) in [f"{example}<|user|>One and six<|end|>{answer}" for example in examples]
    fixed = SYSTEM | {"messages": [{"role": "system", "content": "Say it"}, *TURN["messages"]]}
    for keys, times in ((fixed, 1), (SYSTEM, 2)):
        assert shown(prepare(make(**keys), characters(chat=CHAT)), 1).count("<|system|>") == times


def test_an_adapter_is_served_as_it_was_trained(make):
    kind, chat = (kind_of(make(**keys)) for keys in ({"generation": {"stop": ["z"], "temperature": 0.5}}, TURN))
    serving = kind.serving
    assert (serving.prompt, serving.messages, serving.stop) == ("{q}?", (), ("z",))
    assert (serving.max_new_tokens, serving.temperature, serving.top_p) == (128, 0.5, 1.0)
    assert (chat.serving.prompt, chat.serving.messages) == (None, (("user", "{q}"),))
    tokenizer, settings = characters(chat=CHAT), GenerationConfig(eos_token_id=[2, 3])
    assert served(kind, tokenizer, None).ends == ("</s>",)
    assert served(chat, tokenizer, settings).ends == ("<s>", "</s>", "<|end|>")


# ---- a champion that was trained to be asked in another way ----------------------------------------------------------
def test_an_adapter_is_asked_in_its_own_way_and_held_against_the_tasks_references(make):
    task, own = make(**NUMBER), {"answer": " #### {n}", "generation": {"max_new_tokens": 5}}
    trained = make(**TURN | own, extract={"after": "####"}, max_length=48)
    asked = kind_of(task).asked_as(trained)
    assert asked.settings == {
        **{key: trained.settings[key] for key in ("messages", "answer", "generation")},
        "reference": "{n}",
        "extract": {"after": "####", "as": "number"},  # looked for where it is written, compared as the task says
    }
    assert (asked.name, asked.source, asked.metrics, asked.max_length) == (task.name, task.source, task.metrics, 48)
    assert labels_of(asked) == labels_of(task) == ["4", "12", "7"]
    with pytest.raises(TaskDataError, match=r"\(multiple-choice\), but has \[\] \(text-generation\)"):
        kind_of(task).asked_as(replace(task, kind="multiple-choice"))


def test_references_that_are_the_whole_answer_stay_the_tasks_own(make):
    task = make(extract={"after": "The answer is"})
    asked = kind_of(task).asked_as(make(answer=" {n}", extract=None))
    assert asked.settings["reference"] == task.settings["answer"]
    assert "after" not in asked.settings.get("extract", {})
    for stop in ("END", "}"):  # without the stop string
        task = make(answer=" {a}" + stop.replace("}", "}}"), generation={"max_new_tokens": 20, "stop": [stop]})
        asked = kind_of(task).asked_as(make(prompt="Q: {q}"))
        assert labels_of(asked) == labels_of(task) == [row["a"] for row in SUMS]


# ---- answers in texts: where they are, and the form in which they are compared ---------------------------------------
def first_number(text):
    return find(text, "number", regex="(?s)(.*)")


def test_the_first_number_of_a_text_has_one_form():
    for text, number in [
        ("1,234.50", "1234.5"),
        ("3\u202f500,75", "3500.75"),
        ("2.000.000", "2000000"),
        ("1.234", "1.234"),
        ("1'234'567.5", "1234567.5"),
        ("1{,}234", "1234"),
        ("\N{EN DASH}5", "-5"),
        ("$-5", "-5"),
        ("x-5", "5"),
        ("1e3", "1000"),
    ]:
        assert first_number(text) == number, text
    none = ("1,2,3", "12:30 or 5", "2^10", "3/4.5", "\u00bd", "1 1/2", "\\frac{1}{2}", "10-5", "5! = 120", "1" * 101)
    assert [first_number(text) for text in none] == [""] * len(none)
    for text, number in [("3 + 4 = 7.0 apples", "7"), ("10-5=5", "5"), ("1 000 1/2", "")]:
        assert find(text, "number") == number, text
    whole = Extraction.model_validate({"as": "number"})
    assert (whole.bare("12 apples"), whole.bare("5 arms and 3 legs")) == ("12", "")


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("0123456789.,/- $eE%")), max_size=200))
def test_any_text_is_read_and_a_number_stays_what_it_is(text):
    for read in (first_number, lambda it: find(it, "number")):
        number = read(text)
        assert read(number) == number


@given(st.integers(10**6, 10**15), st.integers(1, 99), st.sampled_from([",.", " .", " ,", "\u202f,", "'.", ".,"]))
def test_no_two_numbers_are_one_however_they_are_grouped(whole, cents, marks):
    text = f"{whole:,}.{cents:02}".replace(".", "#").replace(",", marks[0]).replace("#", marks[1])
    value = whole + Fraction(cents, 100)
    assert (Fraction(first_number(text)), Fraction(first_number(f"It costs $-{text}."))) == (value, -value)
    assert find(f"of 3 it is {text}.", "number") == first_number(text)


# ---- where -----------------------------------------------------------------------------------------------------------
CHOICES = ["true", "false", "not true"]
MATRIX = "The answer is: \\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}\n\nQuestion"


def test_an_answer_is_found_where_the_keys_say():
    after, text = {"after": "The answer is"}, "The answer is 5. No: The answer is: 6 + 1.\nQuestion: 8"
    for said, form, keys, found in [
        (text, "number", after, "6"),
        (text, "text", after, "6 + 1"),
        (text, "math", after, "6 + 1"),
        ("the answer is 5", "text", after, ""),
        ("The answer is unclear.\nIs it true?", "text", {"one_of": CHOICES, **after}, ""),
        ("The answer is:\n\n True.\nfalse", "text", {"one_of": CHOICES, **after}, "true"),
        ("The answer is:\r\n8 apples\r\n9", "number", after, "8"),
        (MATRIX, "math", after, "\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}"),
        ("The answer is x + 1.\nSo it is.", "math", after, "x + 1"),
        ("answer2 or answer3", "text", {"regex": r"answer(\d)"}, "2"),
        ("pay $1,200.0 now", "number", {"regex": r"pay (\S+)"}, "1200"),
        ("It is untrue, so False, not true.", "text", {"one_of": CHOICES}, "false"),
        ("Not true at all", "text", {"one_of": CHOICES}, "not true"),
        ("\u7b54\u6848\u662f\u6b63\u9762\u7684", "text", {"one_of": ["\u6b63\u9762", "\u8d1f\u9762"]}, "\u6b63\u9762"),
        ("1.5", "text", {"one_of": ["1", "5"]}, ""),
        ("3.A", "text", {"one_of": ["A", "B"]}, "A"),
        ("ma\u00dfe", "text", {"one_of": ["Masse", "Ma\u00dfe"]}, "Ma\u00dfe"),
    ]:
        assert find(said, form, **keys) == found, said


def test_a_formula_is_that_of_the_last_whole_box():
    for text, formula in [
        ("First \\boxed{1}, so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("so $\\boxed 2$ it is", "2"),
        ("\\fbox{3}\n\nAnd more", "3"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{4} and then \\boxed{\\frac{1}{2", "4"),
    ]:
        assert find(text, "math") == formula


# ---- references ------------------------------------------------------------------------------------------------------
def test_references_stand_alone_or_are_found_like_answers():
    extraction = Extraction.model_validate({"after": "The answer is", "as": "number"})
    assert extraction.references(["36.0", "$5", "C"], whole=False) == ["36", "5", ""]
    assert extraction.references(["The answer is 36.0", "5"], whole=False) == ["36", ""]
    assert extraction.references(["36.0"], whole=True) == [""]
    assert Extraction.model_validate({"after": "is"}).references(["blue."], whole=False) == ["blue"]
    assert Extraction.model_validate({"one_of": ["A", "B"]}).references(["a", "C"], whole=False) == ["A", ""]


def test_answers_settle_as_their_equal_references():
    for form, answers, references, settled in [
        ("number", ["3", ""], ["4", "5"], ["3", ""]),
        ("text", ["cafe\u0301", "cafe"], ["caf\u00e9", "caf\u00e9"], ["caf\u00e9", "cafe"]),
        ("math", ["0.5", "x", ""], ["\\frac{1}{2}", "y", "z"], ["\\frac{1}{2}", "x", ""]),
    ]:
        assert Extraction.model_validate({"as": form}).settled(answers, references).tolist() == settled


def equal_formulas(*pairs):
    references, predictions = zip(*pairs, strict=True)
    settled = Extraction.model_validate({"as": "math"}).settled(predictions, references)
    return [one == other for one, other in zip(settled, references, strict=True)]


def test_what_math_verify_holds_equal_is_equal_and_one_that_never_ends_is_not():
    pairs = {
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"): True,
        ("\\$36", "36"): True,
        ("1 1/2", "3/2"): True,
        ("10^{10^{10}}", "5"): False,
        ("2 3", "5"): False,
        ("2.000.000", "3.000.000"): False,
        ("1.5e-3", "0.0015"): True,
        ("p - q", "q - p"): False,
        ("{ x", "{  x"): True,  # as text
    }
    assert equal_formulas(*pairs) == list(pairs.values())


DYING = """import sys
print("ready", flush=True)
for line in sys.stdin:
    print(str("die" not in line or sys.exit(1)).lower(), flush=True)
"""


def test_a_pair_that_ends_the_process_is_unequal_and_a_missing_library_is_named(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(text_generation, "_WORKER", worker)
    worker.write_text(DYING)
    assert equal_formulas(("1", "2"), ("die", "x"), ("3", "4"), ("die", "y")) == [True, False, True, False]
    worker.write_text("raise ImportError('no module named math_verify')")
    with pytest.raises(LoraxsError, match="no module named math_verify"):
        equal_formulas(("1", "2"))


# ---- keys ------------------------------------------------------------------------------------------------------------
def test_choices_of_yaml_are_texts_and_wrong_keys_are_refused():
    section = Extraction.model_validate({"one_of": [True, False, 3, " A "]})
    assert section.model_dump(exclude_none=True, by_alias=True) == {"one_of": ["true", "false", "3", "A"], "as": "text"}
    for keys, message in [
        ({"regex": "(a"}, "must be a regular expression"),
        ({"regex": "a"}, "must have a group"),
        ({"one_of": ["a", 1.5]}, "must be a text, a whole number"),
        ({"one_of": ["a"]}, "at least 2"),
    ]:
        with pytest.raises(ValidationError, match=message):
            Extraction.model_validate(keys)
    for keys, path in [
        ({"after": "a", "regex": "(b)"}, ("extract",)),
        ({"one_of": ["not  a", "Not\na"]}, ("extract", "one_of")),
        ({"one_of": ["a", "b"], "as": "number"}, ("extract", "as")),
    ]:
        assert [fault for fault, _ in Extraction.laws(keys)] == [path]
