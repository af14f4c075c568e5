"""Overrides that narrow a space to fewer methods; keys that are gone, in new spaces and in stored studies."""

from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path

import pytest
import yaml

from loraxs_search.errors import SpaceError, StudyError
from loraxs_search.search_space import load_space, parse_space, parse_stored, place_given

RIVALS = ("lora-xs", "lora", "vera", "head-only", "full")
SPACE = """\
task: sst2
base_model: a/b
method: {choice: [lora-xs, lora, vera, ia3]}
parameters:
  learning_rate:
    - {log_uniform: [1.0e-3, 1.0e-2], when: {method: [lora-xs, ia3]}}
    - {log_uniform: [1.0e-4, 1.0e-3], when: {method: lora, rank: 4}}
    - 5.0e-5
  rank: {choice: [4, 8]}
  weight_decay: {uniform: [0, 0.1], when: {method: [lora, ia3]}, else: 0.0}
  sigma: {choice: [input, sqrt], when: {rank: 8}, else: none}
  dora: {choice: [true, false]}
promotion: {methods: [lora-xs, lora]}
"""


def narrowed(text: str, methods: str):
    return parse_space(text, source="space.yaml", folder=Path(), overrides=[f"method={methods}"])


@pytest.mark.parametrize("name", RIVALS)
def test_one_method_of_a_shipped_space_has_the_parameters_that_its_trials_had(name: str) -> None:
    whole, alone = load_space("rivals_movie_reviews"), load_space("rivals_movie_reviews", overrides=[f"method={name}"])
    assert alone.methods == (name,)
    assert alone.parameters == whole.parameters_of(name)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_methods_have_the_parameters_that_their_trials_had(number: int) -> None:
    whole = parse_space(SPACE, source="space.yaml", folder=Path())
    for names in itertools.combinations(whole.methods, number):
        promoted = tuple(name for name in ("lora-xs", "lora") if name in names)
        if not promoted:
            with pytest.raises(SpaceError, match=r"promotion\.methods"):
                narrowed(SPACE, f"{{choice: [{', '.join(names)}]}}")
            continue
        some = narrowed(SPACE, f"{{choice: [{', '.join(names)}]}}")
        assert some.methods == names
        assert [some.parameters_of(name) for name in names] == [whole.parameters_of(name) for name in names]
        assert narrowed(some.text, promoted[0]).parameters == whole.parameters_of(promoted[0])
        assert some.promotion.methods == promoted


def test_a_condition_on_what_other_methods_alone_take_never_holds() -> None:
    text = SPACE.split("parameters:", maxsplit=1)[0].replace(", ia3", "") + (
        "parameters:\n  learning_rate: 1.0e-3\n  basis: {choice: [top, middle]}\n"
        "  rank: [{choice: [64], when: {basis: middle}}, {choice: [8, 16]}]\n"
        "  weight_decay: {value: 0.1, when: {basis: top}, else: 0.2}\n"
    )
    whole = parse_space(text, source="space.yaml", folder=Path())
    assert narrowed(text, "vera").parameters == whole.parameters_of("vera")
    assert narrowed(text, "lora-xs").parameters == whole.parameters_of("lora-xs")


@pytest.mark.parametrize("given", ["parameters.sigma=none", "parameters.dora=true"])
def test_what_is_set_for_a_method_that_is_left_out_is_a_fault(given: str) -> None:
    """It was typed, so it is not passed over as what the file says of other methods is."""
    with pytest.raises(SpaceError, match=rf"--set {given}: parameters"):
        parse_space(SPACE, source="s.yaml", folder=Path(), overrides=["method={choice: [vera, ia3]}", given])


def test_a_method_that_is_not_installed_may_be_left_out() -> None:
    text = SPACE.replace("lora, vera, ia3]}", "lora, absent]}", 1).replace("[lora-xs, ia3]}}", "[lora-xs, absent]}}")
    text = text.replace("[lora, ia3]", "[lora, absent]").replace("methods: [lora-xs, lora]", "methods: [lora, absent]")
    alone = narrowed(text, "lora")
    assert (alone.methods, alone.promotion.methods) == (("lora",), ("lora",))
    assert alone.parameters == narrowed(SPACE, "lora").parameters
    with pytest.raises(SpaceError) as caught:
        narrowed(f"{text}nonsense: 1\n", "absent")
    assert "--set method=absent: method: " in caught.value.message
    assert "nonsense" in caught.value.message


def test_methods_that_the_space_did_not_have_are_held_against_all_that_it_says() -> None:
    for given in ("unilora", "{choice: [lora, unilora]}"):
        with pytest.raises(SpaceError) as caught:
            narrowed(SPACE, given)
        assert "learning_rate[0].when.method" in caught.value.message


def test_what_is_wrong_stays_wrong_at_its_line() -> None:
    faulty = SPACE.replace("rank: 4", "rank: 5").replace("method: [lora, ia3]", "method: [lora, ia4]")
    with pytest.raises(SpaceError) as caught:
        narrowed(faulty, "lora")
    assert "space.yaml:7: parameters.learning_rate[0].when.rank: must be a value that rank may have" in str(
        caught.value
    )
    assert "space.yaml:10: parameters.weight_decay.when.method" in str(caught.value)


def test_a_space_without_parameters_or_of_another_form_is_told_so() -> None:
    for text in (yaml.safe_dump({**yaml.safe_load(SPACE), "parameters": 3}), "method: {choice: [lora, vera]}\n", "3\n"):
        with pytest.raises(SpaceError):
            narrowed(text, "lora")


DECIDING = {
    "warm_start: auto": "warm_start",
    "warm_start: [x]": "warm_start",
    "method: psoft": "method",
    "method: {choice: [lora-xs, randlora]}": "method.choice[1]",
    "method: {value: vb-lora}": "method.value",
    "parameters: {basis: gradient}": "parameters.basis",
    "parameters: {basis: {choice: [top, gradient]}}": "parameters.basis.choice[1]",
    "parameters: {basis: {value: top, when: {rank: 4}, else: gradient}}": "parameters.basis.else",
    "parameters: {scale: {value: 1, when: {basis: [top, gradient]}, else: 2}}": "parameters.scale.when.basis[1]",
}
IGNORED = {
    "promotion: {notify: 'https://example.org/x'}": "promotion.notify",
    "promotion: {max_latency: 1.3}": "promotion.max_latency",
}


@pytest.mark.parametrize(("line", "key"), (DECIDING | IGNORED).items())
def test_a_new_space_gets_one_error_that_says_what_to_do(parse, line, key):
    with pytest.raises(SpaceError) as caught:
        parse(f"rubbish: here\n{line}\n")
    (fault,) = caught.value.message.splitlines()[1:]
    assert fault.startswith(f"space.yaml:2: {key}: ")
    assert ("use " in caught.value.hint) or ("leave " in caught.value.hint)


def test_an_override_that_names_it_is_refused_too(parse, text):
    with pytest.raises(SpaceError) as caught:
        parse(text, "parameters.basis=gradient", "method=psoft")
    assert "use `basis: top`" in caught.value.hint
    assert "lora-xs" in caught.value.hint


def test_a_key_that_has_another_name_now_is_refused_with_that_name(parse, text):
    with pytest.raises(SpaceError) as caught:
        parse(text, "search.keep=best")
    assert "search.keep: must be called `checkpoint`" in caught.value.message
    assert caught.value.hint == 'write `search.checkpoint: "best"`'


def test_a_stored_study_goes_on_with_the_name_that_a_key_had(text, folder, caplog):
    text = re.sub(r"^search:.*?(?=^\S|\Z)", "", text, flags=re.M | re.S) + "\nsearch: {keep: best}\n"
    space = parse_stored(text, source="space.yaml", folder=folder, name="old")
    assert space.search.checkpoint == "best"
    assert not caplog.text


@pytest.mark.parametrize(("line", "key"), DECIDING.items())
def test_a_stored_study_that_needs_it_does_not_go_on(folder, line, key):
    with pytest.raises(StudyError) as caught:
        parse_stored(line, source="space.yaml", folder=folder, name="old")
    assert key in caught.value.message
    assert "launch a new study" in caught.value.hint


@pytest.mark.parametrize(("line", "key"), IGNORED.items())
def test_a_stored_study_goes_on_without_what_decides_no_trial(parse, text, folder, caplog, line, key):
    text = text.replace("promotion:\n  metric: f1\n", f"{line}\nwarm_start:\n")
    with caplog.at_level(logging.WARNING):
        space = parse_stored(text, source="space.yaml", folder=folder, name="old")
    assert space.parameters == parse(text.replace(line, "").replace("warm_start:", "")).parameters
    assert key in caplog.text


def test_a_trial_that_people_ask_for_cannot_name_it_either(parse, text):
    space = parse(text.replace("parameters:", "parameters:\n  basis: {choice: [top, gaussian]}"))
    (fault,) = place_given(space, {"basis": "gradient"}).faults
    assert "use `basis: top`" in fault


def test_a_stored_study_goes_on_with_keys_that_contradicted_each_other(parse, text, folder):
    old = text.replace("  metric: f1\n", "  metric: f1\n  direction: minimize\n")
    old = old.replace(
        "{train: train.jsonl}", "{train: train.jsonl, test: train.jsonl}\n    test: {hub: org/rows, split: test}"
    )
    with pytest.raises(SpaceError, match=r"since data_files\.test names"):
        parse(old)
    source = parse_stored(old, source="space.yaml", folder=folder, name="old").task.source
    assert (set(source.data_files), set(source.elsewhere)) == ({"train"}, {"test"})


def test_a_fixed_permutation_is_no_new_basis_but_stored_studies_go_on_with_it(parse, text, folder):
    old = text.replace("parameters:", "parameters:\n  basis: {choice: [top, random]}")
    with pytest.raises(SpaceError) as refused:
        parse(old)
    assert "use `basis: gaussian`" in refused.value.hint
    space = parse_stored(old, source="space.yaml", folder=folder, name="old")
    assert space.parameters["basis"].possible == ("top", "random")
    placed = place_given(space, {"basis": "random"})
    assert (placed.faults, placed.params) == ((), {"basis": "random"})
