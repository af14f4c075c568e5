"""`warm_start`, and the params of other spaces' trials in this one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from optuna.samplers import RandomSampler
from optuna.study import create_study
from support.toy_ia3 import ToyIA3

from loraxs_search.methods import METHODS
from loraxs_search.records import Scalar
from loraxs_search.search_space import EarlierStudies, place_params, single_method

TEXT = """\
task: sst2
base_model: a/b
method: {choice: [lora-xs, toy-ia3]}
parameters:
  rank: {choice: [4, 8]}
  side: input
  target_modules: {choice: [attention, query+value]}
  scale: {uniform: [0.5, 2.0], step: 0.5}
  sigma: {choice: [input, sqrt], when: {rank: 4}, else: none}
  batch_size: {int: [8, 32], step: 8}
  learning_rate:
    - {log_uniform: [1.0e-3, 1.0e-2], when: {method: lora-xs}}
    - {log_uniform: [1.0e-5, 1.0e-4]}
"""
FITS: dict[str, Scalar] = {
    "method": "lora-xs",
    "rank": 4,
    "target_modules": "query+value",
    "scale": 1.5,
    "sigma": "sqrt",
    "batch_size": 16,
    "learning_rate": 0.002,
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(METHODS._entries, ToyIA3.name, ToyIA3)
    yield


# ---- the section -----------------------------------------------------------------------------------------------------
def test_studies_are_named_or_found(parse: Any) -> None:
    named = parse(TEXT + "warm_start:\n  - reviews\n  - other\n").warm_start
    assert named == EarlierStudies(("reviews", "other"), ("space.yaml:15", "space.yaml:16"))
    assert parse(TEXT + "warm_start: auto\n").warm_start == EarlierStudies()
    assert parse(TEXT).warm_start is None
    overridden = parse(TEXT, "warm_start=[reviews]")
    assert overridden.warm_start == EarlierStudies(("reviews",), ("--set warm_start=[reviews]",))
    assert pickle.loads(pickle.dumps(overridden)) == overridden


@pytest.mark.parametrize(
    ("given", "key", "told"),
    [
        (
            "reviews",
            "warm_start",
            'must be a list of studies, or auto, which finds them, but got "reviews"; write [',
        ),
        ("[]", "warm_start", "must be a list of studies"),
        ("3", "warm_start", "must be a list of studies"),
        ("[a, b, c, d]", "warm_start", "must name at most 3 studies"),
        ("[a, 3]", "warm_start[1]", "must be a study's name, but got 3; quote it"),
        ("[a, b, a]", "warm_start[2]", "must name each study once, but a came before"),
    ],
)
def test_a_warm_start_that_is_none(faults: Any, given: str, key: str, told: str) -> None:
    (line,) = faults(f"{TEXT}warm_start: {given}\n")
    assert line.startswith(f"space.yaml:14: {key}: ")
    assert told in line


def test_the_method_of_a_text_needs_no_registry_and_no_files() -> None:
    assert single_method("task: gone") == "lora-xs"
    assert single_method("method: gone\nbase_model: ./nowhere") == "gone"
    assert single_method("method: {choice: [vera]}") == single_method("method: {value: vera}") == "vera"


# ---- params of others ------------------------------------------------------------------------------------------------
def test_params_of_the_space_are_placed_as_they_are(parse: Any) -> None:
    space = parse(TEXT)
    study = create_study(sampler=RandomSampler(seed=0))
    for _ in range(40):
        params = space.suggest(study.ask())
        placed = place_params(space, params)
        assert (placed.params, placed.faults) == (params, ())
        assert list(placed.params) == list(params)
        as_texts = {name: str(value) for name, value in params.items()}
        assert place_params(space, as_texts) == placed, "as MLflow keeps them"


def test_what_one_space_leaves_out_is_at_its_default_in_the_other(parse: Any) -> None:
    space = parse(TEXT)
    plain = {name: value for name, value in FITS.items() if name != "batch_size"}
    more: dict[str, Scalar] = {"weight_decay": 0.0, "head_learning_rate": 0.002, "init_std": 1e-5, "basis": "top"}
    assert place_params(space, plain | more).params == FITS
    unknown = {"factor_rank": "64", "num_target_modules": 3, "side": "output"}
    assert place_params(space, FITS | unknown).params == FITS, "names that are no parameters of its method"
    one = parse(TEXT.replace("{choice: [lora-xs, toy-ia3]}", "lora-xs").replace("  side: input\n", ""))
    assert place_params(one, FITS).params == {name: value for name, value in FITS.items() if name != "method"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rank": 16, "sigma": "none"}, "rank is 16, and here one of 4, 8"),
        ({"rank": 8}, "sigma is sqrt, and here none"),
        ({"learning_rate": 1e-4}, "learning_rate is 0.0001, and here in 0.001..0.01"),
        ({"scale": 1.2}, "scale is 1.2, and here in 0.5..2 by 0.5"),
        ({"batch_size": 12}, "batch_size is 12, and here in 8..32 by 8"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1, and here 0.0"),
        ({"head_learning_rate": 0.5}, "head_learning_rate is 0.5, and here 0.002"),
        ({"target_modules": "ffn"}, "target_modules is ffn, and here one of attention, query+value"),
        ({"method": "vera"}, "method is vera, and here lora-xs or toy-ia3"),
        ({"batch_size": "many"}, "batch_size is many, and here in 8..32 by 8"),
    ],
)
def test_what_lies_outside_is_named(parse: Any, changes: dict[str, Scalar], told: str) -> None:
    placed = place_params(parse(TEXT), FITS | changes)
    assert placed.faults == (told,)


def test_an_expression_in_another_spelling_is_the_same(parse: Any) -> None:
    assert place_params(parse(TEXT), FITS | {"target_modules": "value+query"}).params == FITS
