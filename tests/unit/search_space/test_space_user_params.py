"""Params that people give: what a trial of a space could have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from support.examples import few

from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space, place_given

CONDITIONS = """
task: sst2
base_model: org/base
parameters:
  basis: {choice: [top, gaussian, bottom]}
  rank:
    - {choice: [4, 8], when: {basis: top}}
    - {choice: [16, 32]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  sigma: {choice: [input, sqrt], when: {basis: [top, gaussian]}}
  batch_size: 8
"""
METHODS = """
task: sst2
base_model: org/base
method: {choice: [lora-xs, lora]}
parameters:
  rank: {choice: [4, 8]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  basis: {choice: [top, gaussian]}
"""


def space(text: str = CONDITIONS) -> Space:
    return parse_space(text, source="s.yaml", folder=Path("/"))


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"rank": 8}, "`rank` must come with what decides whether a trial has it: add --set basis=..."),
    ({"basis": "bottom", "sigma": "sqrt"}, "`sigma` must be left out of a trial with basis bottom, but got"),
    ({"basis": "top", "rank": 16}, "`rank` must be as the space has it, one of 4, 8, but got 16"),
    ({"learning_rate": 0.9}, "`learning_rate` must be as the space has it, in 0.001..0.1"),
    ({"learning_rate": True}, "`learning_rate` must be a number above 0, but got true"),
    ({"basis": "bottom", "rank": "1_6"}, '`rank` must be an integer in 1..65536, but got "1_6"'),
    ({"weight_decay": 0.1}, "`weight_decay` must be a parameter of the space"),
]


def test_what_no_trial_could_have_is_a_fault():
    for params, law in IMPOSSIBLE:
        _, (fault,) = place_given(space(), params)
        assert law in fault


def test_all_faults_are_reported_at_once_and_texts_stand_for_numbers():
    _, faults = place_given(space(), {"rnak": 3, "basis": "bottom", "sigma": "sqrt", "learning_rate": "fast"})
    assert len(faults) == 3
    fine = place_given(space(), {"basis": "top", "rank": "8", "learning_rate": "1e-2", "sigma": "sqrt"})
    assert fine == ({"basis": "top", "rank": 8, "learning_rate": 0.01, "sigma": "sqrt"}, [])


def test_with_several_methods_a_parameter_of_one_needs_the_method():
    law = place_given(space(METHODS), {"basis": "top"})[1]
    assert law == ["`basis` must come with what decides whether a trial has it: add --set method=...."]
    assert not place_given(space(METHODS), {"basis": "top", "method": "lora-xs"})[1]
    assert "`basis` must be left out" in place_given(space(METHODS), {"basis": "top", "method": "lora"})[1][0]


SOURCE = {"basis": "top", "rank": 8, "learning_rate": 0.01, "sigma": "sqrt", "batch_size": 8}


def test_what_is_not_given_is_as_in_the_source():
    assert place_given(space(), {"rank": 4}, SOURCE)[0] == {**SOURCE, "rank": 4}


def test_what_another_method_or_condition_lacks_is_left_behind():
    source = {"method": "lora-xs", "rank": 4, "learning_rate": 0.01, "basis": "gaussian"}
    made = place_given(space(METHODS), {"method": "lora", "rank": 8}, source)
    assert made == ({"method": "lora", "rank": 8, "learning_rate": 0.01}, [])
    assert "sigma" not in place_given(space(), {"basis": "bottom", "rank": 16}, SOURCE)[0]
    assert "rank" in place_given(space(), {"basis": "bottom"}, SOURCE)[1][0], "a rank of 8 does not go with it"


@few
@given(st.data())
def test_whatever_a_trial_of_the_space_has_can_be_given(data):
    made = space(data.draw(st.sampled_from([CONDITIONS, METHODS])))
    distributions = {
        "method": st.sampled_from(["lora-xs", "lora"]),
        "basis": st.sampled_from(["top", "gaussian"]),
        "rank": st.sampled_from([4, 8]),
        "rank[1]": st.sampled_from([16, 32]),
        "learning_rate": st.floats(1e-3, 1e-1),
        "sigma": st.sampled_from(["input", "sqrt"]),
    }
    params = made.suggest(FixedTrial(data.draw(st.fixed_dictionaries(distributions))))
    assert place_given(made, params) == (params, [])
    assert place_given(made, {}, params)[0] == params
