"""Spaces of several methods: each trial has the params of its own method, and no others."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.study import create_study
from optuna.trial import FixedTrial
from support.toy_ia3 import RankedIA3, ToyIA3

from loraxs_search.methods import METHODS, get_method
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.task import LinearModule
from loraxs_search.search_space.parameters import COMMON
from loraxs_search.search_space.space import Space, describe, notes

MODULES = tuple(LinearModule(f"bert.encoder.layer.{i}.attention.self.query", 64, 64) for i in range(2))
TEXT = """\
task: sst2
base_model: a/b
method: {choice: [lora-xs, ia3, ranked]}
parameters:
  learning_rate:
    - {log_uniform: [1.0e-3, 1.0e-2], when: {method: lora-xs}}
    - {log_uniform: [1.0e-4, 1.0e-3], when: {rank: 4}}
    - 5.0e-5
  rank: {choice: [4, 8]}
  sigma: {choice: [input, sqrt]}
  side:
    - {choice: [input, output], when: {method: ia3}}
    - {choice: [input, both], when: {method: ranked, rank: 8}}
search: {trials: 4}
"""


class IA3(ToyIA3):
    name = "ia3"


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS, "_entries", {entry.name: entry for entry in (LoraXS, IA3, RankedIA3)})
        yield


def draws(space: Space, number: int = 40, seed: int = 0) -> Iterator[tuple[Any, dict[str, Any]]]:
    study = create_study(sampler=RandomSampler(seed=seed))
    for _ in range(number):
        trial = study.ask()
        yield trial, space.suggest(trial)


# ---- drawing ---------------------------------------------------------------------------------------------------------
def test_the_method_is_the_first_parameter_and_decides_which_others_there_are(parse):
    space = parse(TEXT)
    assert space.methods == ("lora-xs", "ia3", "ranked")
    assert list(space.parameters) == ["method", "learning_rate", "rank", "sigma", "side"]
    assert pickle.loads(pickle.dumps(space)) == space
    seen = set()
    for _, params in draws(space):
        assert next(iter(params)) == "method"
        present = {name for name in ("rank", "sigma", "side") if name in params}
        seen.add((params["method"], *sorted(present)))
        assert params["learning_rate"] == 5e-5 or params.get("rank") in (4, 8)
        if params["method"] == "lora-xs":
            assert params["learning_rate"] >= 1e-3
    assert seen == {("lora-xs", "rank", "sigma"), ("ia3", "side"), ("ranked", "rank"), ("ranked", "rank", "side")}


def test_optuna_knows_each_alternative_by_a_name_of_its_own(parse):
    space = parse(TEXT)
    choices = {"method": ("lora-xs", "ia3", "ranked"), "rank": (4, 8), "sigma": ("input", "sqrt")}
    choices |= {"side": ("input", "output"), "side[1]": ("input", "both")}
    floats = {"learning_rate": (1e-3, 1e-2), "learning_rate[1]": (1e-4, 1e-3)}
    known = {name: CategoricalDistribution(values) for name, values in choices.items()}
    known |= {name: FloatDistribution(*ends, log=True) for name, ends in floats.items()}
    assert space.distributions() == known
    for trial, params in draws(space, 8):
        assert trial.distributions.items() <= space.distributions().items()
        assert trial.params.items() <= space.drawn_params(params).items()


# ---- what a space amounts to -----------------------------------------------------------------------------------------
def test_factors_bytes_and_sizes_are_each_methods_own(parse):
    text = TEXT.replace("rank: {choice: [4, 8]}", "rank: [{choice: [4, 100], when: {method: lora-xs}}, 8]")
    space = parse(text.replace("[input, both], when: {method: ranked, rank: 8}", "[input, both]"))
    assert [*space.factor_sets()] == [("top", 128)]
    assert space.largest().batch_size == 16
    assert max(params["rank"] for _, params in space.largest().adapters) == 100
    modules = tuple(LinearModule(module.name, 128, 128) for module in MODULES)
    described = describe(space, modules)
    assert list(described.methods) == ["lora-xs", "ia3", "ranked"]
    by_rank = described.methods["lora-xs"]
    assert (by_rank.smallest.params, by_rank.largest.params) == ({"rank": 4}, {"rank": 100})
    assert described.largest == by_rank.largest
    assert described.smallest.method in ("lora-xs", "ia3")
    assert described.methods["ranked"].largest.params == {"side": "both"}


def test_those_that_cannot_share_passes_are_named_once(parse):
    space = parse(TEXT)
    assert (space.is_packable, space.unpackable_methods) == (True, ("ia3", "ranked"))
    assert len(notes(space)) == 1
    assert notes(parse(TEXT, "search.pack_size=1")) == (), "nothing is packed at all"
    parameters = "parameters={learning_rate: 1.0e-3}"
    alone = parse(TEXT, "method={choice: [ia3, ranked]}", parameters)
    assert (alone.is_packable, notes(alone)) == (False, ())


def test_a_whole_choice_may_be_overridden(parse):
    space = parse(TEXT, "method.choice=[lora-xs, ranked]", "parameters.side={value: both, when: {method: ranked}}")
    assert space.methods == ("lora-xs", "ranked")
    assert parse(space.text).parameters == space.parameters


def test_a_value_of_a_condition_is_meant_by_the_law_of_any_method_that_has_it(parse):
    space = parse(TEXT, "parameters.weight_decay=[{value: 0.1, when: {side: both}}, 0.0]")
    assert space.parameters["weight_decay"].alternatives[0].when == (("side", ("both",)),)


# ---- faults ----------------------------------------------------------------------------------------------------------
FAULTS = """
  sigma: {choice: [input], when: {method: ia3}} | sigma.when.method | takes sigma: lora-xs, but got "ia3"
  sigma: {choice: [input], when: {side: input}} | sigma.when.side | but only ia3 and ranked take side
  sigma: {choice: [input], when: {batch_size: 3}} | sigma.when.batch_size | must name a parameter of this space: method
  method: ia3 | method | must stand at the top of the file
  rank: {choice: [4, 32]} | rank.choice[1] | must be an integer in 2..16, but got 32, as lora-xs and ranked take it
  rank: {value: 4, when: {method: ranked}} | rank.when | has no `when`, since every trial of lora-xs needs a rank
  rank: [{value: 4, when: {sigma: sqrt}}] | rank | must end with an item without `when`, since every trial of lora-xs
  side: {choice: [input, output]} | side.choice[1] | must be one of: input, but got "output", as ia3 and ranked take it
  weight_decay: [{value: 0.1}, 0.2] | weight_decay[0] | must have `when`, as all but the last
"""


def test_a_fault_has_its_line_and_remedy(faults):
    """Each takes the place of the parameter of its name, or stands beside the others."""
    for line, key, told in (row.strip().split(" | ") for row in FAULTS.strip().splitlines()):
        given = {"learning_rate": "1.0e-3", "rank": "{choice: [4, 8]}", "sigma": "{choice: [input, sqrt]}"}
        given |= {"side": "input"} if "side" in line else {}
        given.pop(name := line.partition(":")[0], None)
        parameters = [*(f"{key}: {value}" for key, value in given.items()), line]
        (fault,) = faults("\n  ".join([TEXT.partition("\n  ")[0], *parameters]))
        assert fault.startswith(f"space.yaml:{4 + len(parameters)}: parameters.{key}: "), (name, fault)
        assert told in fault


def test_a_choice_of_methods_that_is_none(faults):
    for given_, key, told in (
        ("{choice: [lora-xs, ia33]}", "method.choice[1]", "did you mean ia3? It must be one of: ia3, lora-xs"),
        ("{choice: [ia3, ia3]}", "method.choice[1]", "must list each value once"),
        ("{choice: [lora-xs, ia3, ranked], when: {rank: 4}}", "method.when", "must be one of: choice"),
    ):
        (line,) = faults(TEXT.replace("{choice: [lora-xs, ia3, ranked]}", given_))
        assert line.startswith(f"space.yaml:3: {key}: ") and told in line


def test_what_a_method_needs_is_missed_with_its_name(faults):
    text = TEXT.replace("  rank: {choice: [4, 8]}\n", "").replace(", rank: 8", "").replace("rank: 4", "side: input")
    (line,) = faults(text)
    assert line == "space.yaml:4: parameters.rank: is required by lora-xs: an integer in 1..65536, or a range of them."


def test_words_that_no_value_fits_need_an_item_for_each_method(faults, monkeypatch):
    law = RankedIA3.parameters["side"]
    monkeypatch.setattr(RankedIA3, "parameters", {**RankedIA3.parameters, "side": type(law)("float", default=0.5)})
    (line,) = faults(TEXT, "parameters.side=input")
    assert "must be declared in a list, an item for each method with `when: {method: ...}`" in line
    assert line.endswith("since its values differ: one of: output, input for ia3; a number of at least 0 for ranked.")


def test_whatever_is_drawn_resolves_and_holds_its_own_methods_params_alone(parse):
    space = parse(TEXT.replace("log_uniform", "choice"))
    assert space.possible_values("lora-xs", "learning_rate") == (1e-3, 1e-2), "and not those of forms behind it"
    assert space.possible_values("ia3", "learning_rate") == (5e-5,)
    for trial, params in draws(space, 20):
        method = space.method_of(params)
        assert ("method" in params) == (len(space.methods) > 1)
        assert params.keys() <= {"method", *method.parameters, *COMMON}
        made = space.hyperparameters(params, MODULES, 1)
        assert made.method == method.name
        own = {name: value for name, value in params.items() if name in method.parameters}
        assert own.items() <= method.params(made).items()
        assert made.learning_rate == params["learning_rate"]
        again = FixedTrial(space.drawn_params(params))
        assert space.suggest(again) == params
        assert (again.params, again.distributions) == (trial.params, trial.distributions)
    # lora-xs: 2 rates, 2 ranks, 2 sigmas; ia3: 2 sides; ranked: 2 rates at rank 4, 2 sides at rank 8.
    assert space.grid_size() == 8 + 2 + 4
    for name, extremes in describe(space, MODULES).methods.items():
        assert set(extremes.smallest.params) == set(get_method(name).sized_by) & space.parameters.keys()
