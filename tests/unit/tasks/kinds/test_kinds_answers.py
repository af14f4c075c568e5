"""Answers in texts: where they are, and the form in which they are compared."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loraxs_search.errors import LoraxsError
from loraxs_search.tasks.kinds import text_generation
from loraxs_search.tasks.kinds.text_generation import Extraction


def find(text, form="text", **extract):
    return Extraction.model_validate({"as": form, **extract}).find(text)


def first_number(text):
    return find(text, "number", regex="(?s)(.*)")


# ---- numbers ---------------------------------------------------------------------------------------------------------
def test_the_first_number_of_a_text_has_one_form():
    for text, number in [
        ("1,234.50", "1234.5"),
        ("3\u202f500,75", "3500.75"),
        ("2.000.000", "2000000"),
        ("1.234", "1.234"),
        ("1'234'567.5", "1234567.5"),
        ("1,2,3", ""),
        ("12:30 or 5", ""),
        ("2^10", ""),
        ("3/4.5", ""),
        ("\u00bd", ""),
        ("1 1/2", ""),
        ("1{,}234", "1234"),
        ("\\frac{1}{2}", ""),
        ("\N{EN DASH}5", "-5"),
        ("$-5", "-5"),
        ("x-5", "5"),
        ("10-5", ""),
        ("5! = 120", ""),
        ("1e3", "1000"),
        ("1" * 101, ""),
    ]:
        assert first_number(text) == number, text
    for text, number in [
        ("3 + 4 = 7.0 apples", "7"),
        ("10-5=5", "5"),
        ("1 000 1/2", ""),
    ]:
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
    assert (
        Fraction(first_number(text))
        == Fraction(first_number(f"It costs $-{text}.")) * -1
        == whole + Fraction(cents, 100)
    )
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
