"""What this version has no more: a new space that names it is refused, a stored study is read without it."""

from __future__ import annotations

import logging

import pytest

from loraxs_search.errors import SpaceError, StudyError
from loraxs_search.search_space import parse_stored, place_given

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


def test_a_fixed_permutation_is_no_new_basis_but_stored_studies_go_on_with_it(parse, text, folder):
    old = text.replace("parameters:", "parameters:\n  basis: {choice: [top, random]}")
    with pytest.raises(SpaceError) as refused:
        parse(old)
    assert "use `basis: gaussian`" in refused.value.hint
    space = parse_stored(old, source="space.yaml", folder=folder, name="old")
    assert space.parameters["basis"].possible == ("top", "random")
    placed = place_given(space, {"basis": "random"})
    assert (placed.faults, placed.params) == ((), {"basis": "random"})
