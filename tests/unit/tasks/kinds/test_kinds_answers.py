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


def only_number(text):
    return Extraction.model_validate({"as": "number"}).bare(text)


def equal_formulas(reference, prediction):
    (settled,) = Extraction.model_validate({"as": "math"}).settled([prediction], [reference])
    return settled == reference


def first_number(text):
    return Extraction.model_validate({"as": "number", "regex": "(?s)(.*)"}).find(text)


def last_number(text):
    return Extraction.model_validate({"as": "number"}).find(text)


# ---- numbers ---------------------------------------------------------------------------------------------------------
def test_the_first_number_of_a_text_has_one_form():
    for text, number in [
        ("1,234.50", "1234.5"),
        ("3\u202f500,75", "3500.75"),
        ("1.234,56", "1234.56"),
        ("2.000.000", "2000000"),
        ("0,250", "0.25"),
        ("1'234'567.5", "1234567.5"),
        ("1,2,3", ""),
        ("12:30 or 5", ""),
        ("2^10", ""),
        ("3/4.5", ""),
        ("5\u00b2", ""),
        ("1\u00bd", ""),
        ("1{,}234", "1234"),
        ("12\\,345\\%", "12345"),
        ("\\frac{1}{2}", ""),
        ("\N{EN DASH}5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("x-5", "5"),
        ("10-5", ""),
        ("2024-05-01T10:30", ""),
        ("a 5-year-old", "5"),
        ("5! = 120", ""),
        (".5", "0.5"),
        ("3/4 of it", ""),
        ("\u00bd", ""),
        ("1 1/2", ""),
        ("1e3", "1000"),
        ("3 apples and 4 pears", "3"),
        ("-0.0", "0"),
        ("", ""),
        ("1" * 101, ""),
        ("\N{FULLWIDTH DIGIT ONE}", ""),
    ]:
        assert first_number(text) == number


def test_other_numbers_of_a_text():
    assert last_number("3 + 4 = 7.0 apples") == "7"
    assert last_number("10-5 = 5") == last_number("10-5=5") == "5"
    assert last_number("2024-05-01") == last_number("from 3 to 10-20") == ""
    assert last_number("1 000 1/2") == last_number("5 or 1 \u00bd") == ""
    assert only_number("12 apples") == "12"
    assert only_number("5 arms and 3 legs") == ""


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("0123456789.,/- $eE%")), max_size=200))
def test_any_text_is_read_and_a_number_stays_what_it_is(text):
    for read in (first_number, last_number, only_number):
        number = read(text)
        assert read(number) == number


@given(st.integers(-(10**15), 10**15), st.integers(0, 99))
def test_thousands_and_currency_change_nothing(whole, cents):
    plain = f"{whole}.{cents:02}"
    assert first_number(f"{whole:,}.{cents:02}") == first_number(plain)
    assert first_number(f"It costs ${whole:,}.{cents:02}.") == first_number(plain)


@given(st.integers(10**6, 10**15), st.integers(1, 99), st.sampled_from([",.", " .", " ,", "\u202f,", "'.", ".,"]))
def test_no_two_numbers_are_one_however_they_are_grouped(whole, cents, marks):
    text = f"{whole:,}.{cents:02}".replace(".", "#").replace(",", marks[0]).replace("#", marks[1])
    assert Fraction(first_number(text)) == whole + Fraction(cents, 100)
    assert last_number(f"of 3 it is {text}.") == first_number(text)


# ---- where -----------------------------------------------------------------------------------------------------------
def find(text, **extract):
    return Extraction.model_validate(extract).find(text)


def test_after_takes_the_last_place():
    text = "The answer is 5. No: The answer is: 6 + 1.\nQuestion: 8"
    assert find(text, after="The answer is", **{"as": "number"}) == "6"
    assert find(text, after="The answer is") == "6 + 1"
    assert find(text, after="The answer is", **{"as": "math"}) == "6 + 1"
    assert find("the answer is 5", after="The answer is") == ""
    assert find("The answer is", after="The answer is") == ""


def test_a_formula_goes_over_lines():
    text = "The answer is: \\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}\n\nQuestion"
    found = find(text, after="The answer is", **{"as": "math"})
    assert found == "\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}"
    assert find("The answer is x + 1.\nSo it is.", after="The answer is", **{"as": "math"}) == "x + 1"


def test_a_formula_is_that_of_the_last_whole_box():
    for text, formula in [
        ("First \\boxed{1}, so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("so $\\boxed 2$ it is", "2"),
        ("\\fbox{3}\n\nAnd more", "3"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{4} and then \\boxed{\\frac{1}{2", "4"),
        ("only \\boxed{\\frac{1}{2", ""),
        ("\\frac{1}{2", ""),
        ("10^{2", ""),
    ]:
        assert find(text, **{"as": "math"}) == formula


@given(
    st.recursive(
        st.text("ab ", max_size=3), lambda part: st.lists(part, max_size=3).map(lambda it: f"{{{''.join(it)}}}")
    )
)
def test_braces_in_a_box_are_its_own(inner):
    assert find(f"\\boxed{{1}} or \\boxed{{{inner}}}.", **{"as": "math"}) == inner


def test_what_stands_behind_a_marker_is_on_its_line():
    assert find("The answer is unclear.\nIs it true?", after="The answer is", one_of=["true", "false"]) == ""
    assert find("The answer is:\n\n True.\nfalse", after="The answer is", one_of=["true", "false"]) == "true"
    assert find("The answer is unknown.\nQuestion: 8", after="The answer is", **{"as": "number"}) == ""
    assert find("The answer is:\r\n8 apples\r\n9", after="The answer is", **{"as": "number"}) == "8"


def test_regex_takes_the_first_match():
    assert find("answer2 or answer3", regex=r"answer(\d)") == "2"
    assert find("pay $1,200.0 now", regex=r"pay (\S+)", **{"as": "number"}) == "1200"
    assert find("3 of 7", regex=r"(.*)", **{"as": "number"}) == "3", "also of a group that is the whole text"
    assert find("nothing", regex=r"answer(\d)") == ""
    assert find("b", regex=r"(a)?b") == ""


def test_one_of_takes_the_first_word_whatever_its_case():
    choices = ["true", "false", "not true"]
    assert find("It is untrue, so False, not true.", one_of=choices) == "false"
    assert find("Not true at all", one_of=choices) == "not true"
    assert find("falsehood", one_of=choices) == ""
    assert find("true? The answer is false", one_of=choices, after="The answer is") == "false"


def test_one_of_finds_words_of_their_own():
    for text, choices, choice in [
        ("\u7b54\u6848\u662f\u6b63\u9762\u7684", ["\u6b63\u9762", "\u8d1f\u9762"], "\u6b63\u9762"),
        ("\u7b54\u6848\u662fB", ["A", "B"], "B"),
        ("d\u0131g", ["dig", "dag"], ""),
        ("1.5", ["1", "5"], ""),
        ("It is 5.", ["1", "5"], "5"),
        ("3.A", ["A", "B"], "A"),
        ("very\ngood", ["good", "very good"], "very good"),
        ("It is ye\u017f.", ["other", "yes"], "yes"),
        ("ma\u00dfe", ["Ma\u00dfe", "Masse"], "Ma\u00dfe"),
        ("MA\u1e9eE", ["Masse", "Ma\u00dfe"], "Ma\u00dfe"),
    ]:
        assert find(text, one_of=choices) == choice


def test_accents_are_equal_however_they_are_stored():
    composed, apart = "caf\u00e9", "cafe\u0301"
    extraction = Extraction()
    assert extraction.settled([apart, "cafe"], [composed, composed]).tolist() == [composed, "cafe"]
    assert find(f"a {apart}", one_of=[composed, "tea"]) == composed
    assert [*Extraction.laws({"one_of": [composed, apart]})]


# ---- references ------------------------------------------------------------------------------------------------------
def test_references_stand_alone_or_are_found_like_answers():
    extraction = Extraction.model_validate({"after": "The answer is", "as": "number"})
    assert extraction.references(["36.0", "$5", "C"], whole=False) == ["36", "5", ""]
    assert extraction.references(["The answer is 36.0", "5"], whole=False) == ["36", ""]
    assert extraction.references(["36.0"], whole=True) == [""]
    assert Extraction.model_validate({"after": "is"}).references(["blue."], whole=False) == ["blue"]
    assert Extraction.model_validate({"one_of": ["A", "B"]}).references(["a", "C"], whole=False) == ["A", ""]


def test_answers_settle_as_their_equal_references():
    number, formula = Extraction.model_validate({"as": "number"}), Extraction.model_validate({"as": "math"})
    assert number.settled(["3", ""], ["4", "5"]).tolist() == ["3", ""]
    assert formula.settled(["0.5", "x", ""], ["\\frac{1}{2}", "y", "z"]).tolist() == ["\\frac{1}{2}", "x", ""]
    assert formula.settled([], []).dtype.kind == "O"


# ---- keys ------------------------------------------------------------------------------------------------------------
def test_choices_of_yaml_are_texts():
    section = Extraction.model_validate({"one_of": [True, False, 3, " A "]})
    assert section.model_dump(exclude_none=True, by_alias=True) == {"one_of": ["true", "false", "3", "A"], "as": "text"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"regex": "(a"}, "must be a regular expression"),
        ({"regex": "a"}, "must have a group"),
        ({"one_of": ["a", 1.5]}, "must be a text, a whole number"),
        ({"one_of": ["a"]}, "at least 2"),
    ],
)
def test_wrong_keys_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Extraction.model_validate(keys)


def test_keys_that_contradict_each_other_are_named():
    for keys, path in [
        ({"after": "a", "regex": "(b)"}, ("extract",)),
        ({"one_of": ["a", "A"]}, ("extract", "one_of")),
        ({"one_of": ["not  a", "Not\na"]}, ("extract", "one_of")),
        ({"one_of": ["a", "b"], "as": "number"}, ("extract", "as")),
    ]:
        assert [fault for fault, _ in Extraction.laws(keys)] == [path]


def test_what_math_verify_holds_equal_is_equal():
    for reference, prediction, equal in [
        ("\\frac{1}{2}", "0.5", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("\\$36", "36", True),
        ("1 1/2", "3/2", True),
        ("1 1/2", "1 2/3", False),
        ("-2 1/3", "-7/3", True),
        ("3 500", "3500", True),
        ("2 3", "5", False),
        ("2.000.000", "3.000.000", False),
        ("1e5", "5e1", False),
        ("1.5e-3", "0.0015", True),
        ("2e^3", "e^3 * 2", True),
        ("\\frac 1 2", "0.5", True),
        ("p - q", "q - p", False),
        ("{", "}", False),
        ("5", "6" * 2000, False),
    ]:
        assert equal_formulas(reference, prediction) is equal


def test_a_formula_that_never_ends_is_unequal_and_the_next_is_compared():
    assert equal_formulas("10^{10^{10}}", "5") is False
    assert equal_formulas("2/4", "0.50") is True


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text("raise ImportError('no module named math_verify')")
    monkeypatch.setattr(text_generation, "_WORKER", broken)
    with pytest.raises(LoraxsError, match="no module named math_verify") as error:
        equal_formulas("1", "2")
    assert "install math-verify" in str(error.value.hint)
