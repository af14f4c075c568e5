"""Params that people give: what a trial of a space could have, and what a clone may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from loraxs_search.search_space import Space, clone_params, parse_space, place_given

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


@pytest.mark.parametrize(
    ("params", "law"),
    [
        ({"sigma": "sqrt"}, "`sigma` must come with what decides whether a trial has it: add --set basis=..."),
        ({"rank": 8}, "`rank` must come with what decides whether a trial has it: add --set basis=..."),
        ({"basis": "bottom", "sigma": "sqrt"}, "`sigma` must be left out of a trial with basis bottom, but got"),
        ({"basis": "top", "rank": 16}, "`rank` must be as the space has it, one of 4, 8, but got 16"),
        ({"basis": "none"}, "`basis` must be one of:"),
        ({"learning_rate": True}, "`learning_rate` must be a number above 0, but got true"),
        ({"basis": "bottom", "rank": "1_6"}, '`rank` must be an integer in 1..65536, but got "1_6"'),
        ({"weight_decay": 0.1}, "`weight_decay` must be a parameter of the space"),
    ],
)
def test_what_no_trial_could_have_is_a_fault(params: dict[str, Any], law: str) -> None:
    placed = place_given(space(), params)
    assert len(placed.faults) == 1
    assert law in placed.faults[0]


def test_all_faults_are_reported_at_once_and_texts_stand_for_numbers() -> None:
    placed = place_given(space(), {"rnak": 3, "basis": "bottom", "sigma": "sqrt", "learning_rate": "fast"})
    assert set(placed.outside) == {"rnak", "sigma", "learning_rate"}
    fine = place_given(space(), {"basis": "top", "rank": "8", "learning_rate": "1e-2", "sigma": "sqrt"})
    assert (fine.params, fine.faults) == ({"basis": "top", "rank": 8, "learning_rate": 0.01, "sigma": "sqrt"}, ())


def test_with_several_methods_a_parameter_of_one_needs_the_method() -> None:
    law = place_given(space(METHODS), {"basis": "top"}).faults
    assert law == ("`basis` must come with what decides whether a trial has it: add --set method=....",)
    assert not place_given(space(METHODS), {"basis": "top", "method": "lora-xs"}).faults
    assert "`basis` must be left out" in place_given(space(METHODS), {"basis": "top", "method": "lora"}).faults[0]


def test_what_a_trial_has_by_else_may_be_given_too() -> None:
    """Params of a trial, as `status` shows them, can be asked for again."""
    conditional = space(
        CONDITIONS.replace("sigma: {choice: [input, sqrt], when", "sigma: {value: sqrt, else: input, when")
    )
    shown = {"basis": "bottom", "rank": 16, "learning_rate": 0.01, "sigma": "input", "batch_size": 8}
    placed = place_given(conditional, shown)
    assert (placed.params, placed.faults) == ({name: shown[name] for name in shown if name != "sigma"}, ())
    assert "`sigma` must be left out" in place_given(conditional, shown | {"sigma": "sqrt"}).faults[0]


SOURCE = {"basis": "top", "rank": 8, "learning_rate": 0.01, "sigma": "sqrt", "batch_size": 8}


def clone(given: dict[str, Any], *, force: bool = False) -> Any:
    return clone_params(space(), SOURCE, given, force=force)


def test_a_clone_is_its_source_but_for_what_is_given() -> None:
    assert clone({"rank": 4}).params == {**SOURCE, "rank": 4}
    assert clone({}).params == SOURCE
    assert clone({"rank": 8, "learning_rate": 0.02}).params == {**SOURCE, "learning_rate": 0.02}


def test_a_clone_may_be_of_another_method() -> None:
    """What the source had of its own method is left behind."""
    source = {"method": "lora-xs", "rank": 4, "learning_rate": 0.01, "basis": "gaussian"}
    made = clone_params(space(METHODS), source, {"method": "lora", "rank": 8}, force=False)
    assert (made.params, made.faults) == ({"method": "lora", "rank": 8, "learning_rate": 0.01}, ())


@pytest.mark.parametrize("name", ["learning_rate", "head_learning_rate", "weight_decay", "batch_size", "warmup_ratio"])
def test_an_optimizer_out_of_the_space_needs_force(name: str) -> None:
    value = {"batch_size": 64}.get(name, 0.9)
    (law,) = clone({name: value}).faults
    assert law.startswith(f"`{name}` must be as the space has it: {name} is {value}, and here ")
    forced = clone({name: value}, force=True)
    assert (forced.faults, forced.outside) == ((), (name,))
    assert forced.params == {**SOURCE, name: value}


def test_conditions_hold_for_clones_too() -> None:
    assert clone({"basis": "bottom"}).faults, "a rank of 8, and a sigma, do not go with it"
    assert not clone({"basis": "bottom", "rank": 16, "sigma": "input"}).faults, "input is what it is where left out"
    assert "sigma" not in clone({"basis": "bottom", "rank": 16, "sigma": "input"}).params


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_a_trial_of_the_space_has_can_be_given(data: st.DataObject) -> None:
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
    placed = place_given(made, params)
    assert (placed.params, placed.faults) == ({k: v for k, v in params.items() if k in placed.params}, ())
    assert set(params) == set(placed.params)
    assert clone_params(made, params, {}, force=False).params == params
