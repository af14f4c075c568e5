"""Overrides that narrow a space to fewer methods."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from loraxs_search.errors import SpaceError
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.search_space.parameters import parameters_of

SPACE = """\
task: sst2
base_model: a/b
method: {choice: [lora-xs, lora, vera, ia3]}
peft_methods:
  vera: {peft_type: VERA}
  ia3: {peft_type: IA3, feedforward_modules: []}
parameters:
  learning_rate:
    - {log_uniform: [1.0e-3, 1.0e-2], when: {method: [lora-xs, ia3]}}
    - {log_uniform: [1.0e-4, 1.0e-3], when: {method: lora, rank: 4}}
    - 5.0e-5
  rank: {choice: [4, 8]}
  weight_decay: [{uniform: [0, 0.1], when: {method: [lora, ia3]}}, 0.0]
  sigma: [{choice: [input, sqrt], when: {rank: 8}}, none]
  dora: {choice: [true, false]}
promotion: {methods: [lora-xs, lora]}
"""


def narrowed(text: str, methods: str):
    return parse_space(text, source="space.yaml", folder=Path(), overrides=[f"method={methods}"])


def test_one_method_of_a_shipped_space_has_the_parameters_that_its_trials_had():
    whole = load_space("rivals_movie_reviews")
    for name in ("lora-xs", "vera", "head-only"):
        alone = load_space("rivals_movie_reviews", overrides=[f"method={name}"])
        assert alone.methods == (name,)
        assert alone.parameters == parameters_of(whole.parameters, [name])


def test_any_methods_have_the_parameters_that_their_trials_had():
    whole = parse_space(SPACE, source="space.yaml", folder=Path())
    for names in (it for number in (1, 2, 3) for it in itertools.combinations(whole.methods, number)):
        promoted = tuple(name for name in ("lora-xs", "lora") if name in names)
        if not promoted:
            with pytest.raises(SpaceError, match=r"promotion\.methods"):
                narrowed(SPACE, f"{{choice: [{', '.join(names)}]}}")
            continue
        some = narrowed(SPACE, f"{{choice: [{', '.join(names)}]}}")
        assert some.methods == names
        assert [parameters_of(some.parameters, [name]) for name in names] == [
            parameters_of(whole.parameters, [name]) for name in names
        ]
        assert narrowed(some.text, promoted[0]).parameters == parameters_of(whole.parameters, [promoted[0]])
        assert some.promotion.methods == promoted


def test_a_condition_on_what_other_methods_alone_take_never_holds():
    text = SPACE.split("parameters:", maxsplit=1)[0].replace(", ia3", "") + (
        "parameters:\n  learning_rate: 1.0e-3\n  basis: {choice: [top, middle]}\n"
        "  rank: [{choice: [64], when: {basis: middle}}, {choice: [8, 16]}]\n"
        "  weight_decay: [{value: 0.1, when: {basis: top}}, 0.2]\n"
    )
    whole = parse_space(text, source="space.yaml", folder=Path())
    assert narrowed(text, "vera").parameters == parameters_of(whole.parameters, ["vera"])
    assert narrowed(text, "lora-xs").parameters == parameters_of(whole.parameters, ["lora-xs"])


def test_what_is_set_for_a_method_that_is_left_out_is_a_fault():
    """It was typed, so it is not passed over as what the file says of other methods is."""
    with pytest.raises(SpaceError, match=r"--set parameters\.sigma=none: parameters"):
        overrides = ["method={choice: [vera, ia3]}", "parameters.sigma=none"]
        parse_space(SPACE, source="s.yaml", folder=Path(), overrides=overrides)


def test_what_is_set_is_held_against_the_methods_that_are_left():
    """Conditions and needs of the others are not: `sigma` hangs on rank 8 here."""
    text = yaml.safe_load(SPACE)
    del text["parameters"]["learning_rate"]  # needed, and brought by an override too
    rank = "{choice: [4], when: {method: lora}}"
    given = ["method=lora", f"parameters.rank={rank}", "parameters.learning_rate=0.001"]
    parameters = parse_space(yaml.safe_dump(text), source="s.yaml", folder=Path(), overrides=given).parameters
    assert list(parameters) == ["dora", "rank", "weight_decay", "learning_rate"]
    assert list(parameters["rank"].possible) == [4]


def test_a_method_that_is_not_installed_may_be_left_out():
    text = SPACE.replace("lora, vera, ia3]}", "lora, absent]}", 1).replace("[lora-xs, ia3]}}", "[lora-xs, absent]}}")
    text = text.replace("[lora, ia3]", "[lora, absent]").replace("methods: [lora-xs, lora]", "methods: [lora, absent]")
    alone = narrowed(text, "lora")
    assert (alone.methods, alone.promotion.methods) == (("lora",), ("lora",))
    assert alone.parameters == narrowed(SPACE, "lora").parameters
    with pytest.raises(SpaceError) as caught:
        narrowed(f"{text}nonsense: 1\n", "absent")
    assert "--set method=absent: method: " in caught.value.message
    assert "nonsense" in caught.value.message


def test_methods_that_the_space_did_not_have_are_held_against_all_that_it_says():
    for given in ("full", "{choice: [lora, full]}"):
        with pytest.raises(SpaceError) as caught:
            narrowed(SPACE, given)
        assert "learning_rate[0].when.method" in caught.value.message


def test_what_is_wrong_stays_wrong_at_its_line():
    faulty = SPACE.replace("rank: 4", "rank: 5").replace("method: [lora, ia3]", "method: [lora, ia4]")
    with pytest.raises(SpaceError) as caught:
        narrowed(faulty, "lora")
    assert "space.yaml:10: parameters.learning_rate[1].when.rank: must be a value that rank may have" in str(
        caught.value
    )
    assert "space.yaml:13: parameters.weight_decay[0].when.method" in str(caught.value)


def test_a_space_without_parameters_or_of_another_form_is_told_so():
    for text in (yaml.safe_dump({**yaml.safe_load(SPACE), "parameters": 3}), "method: {choice: [lora, vera]}\n", "3\n"):
        with pytest.raises(SpaceError):
            narrowed(text, "lora")
