"""`basis: gradient` in a space: what goes with it, what must be left out, and what it stores."""

from __future__ import annotations

import optuna
import pytest

from loraxs_search.records import LinearModule
from loraxs_search.search_space import describe

SPACE = "task: sst2\nbase_model: a/b\nparameters:\n  learning_rate: 1.0e-3\n"
MODULES = tuple(LinearModule(f"encoder.layer.{i}.attention.query", 32, 24) for i in range(3))


def test_what_the_gradient_decides_is_drawn_for_other_bases_alone(parse):
    text = f"{SPACE}  rank: {{choice: [4, 8]}}\n  basis: {{choice: [top, gradient, random]}}\n"
    space = parse(
        text
        + "  scale: {choice: [1, 2]}\n  sigma: sqrt\n  init_std: {log_uniform: [1.0e-6, 1.0e-2], when: {rank: 4}}\n"
    )
    conditions = {name: dict(space.parameters[name].alternatives[0].when) for name in ("scale", "sigma", "init_std")}
    assert conditions["scale"] == conditions["sigma"] == {"basis": ("top", "random")}
    assert conditions["init_std"] == {"rank": (4,), "basis": ("top", "random")}
    hyper = space.hyperparameters({"rank": 4, "basis": "gradient", "learning_rate": 1e-3}, MODULES, 0)
    assert (hyper.scale, hyper.sigma, hyper.init_std, hyper.factor_rank) == (1.0, "none", 0.0, 8)
    other = space.hyperparameters({"rank": 4, "basis": "top", "learning_rate": 1e-3, "sigma": "sqrt"}, MODULES, 0)
    assert (other.sigma, other.factor_rank) == ("sqrt", 64)
    assert {each.basis for each in space.factor_sets()} == {"top", "random"}


def test_one_estimate_for_each_head_that_a_trial_may_have(parse):
    space = parse(
        f"{SPACE}  rank: {{int: [2, 6]}}\n  basis: gradient\n  head: {{choice: [full, output]}}\n", "search.seed=9"
    )
    assert [(each.name, each.rank, each.seed) for each in space.estimates()] == [
        ("gradient-full", 6, 9),
        ("gradient-output", 6, 9),
    ]
    assert parse(f"{SPACE}  rank: 4\n").estimates() == ()


@pytest.mark.parametrize(
    ("basis", "scale", "got"),
    [
        ("gradient", "2", "but basis may be gradient."),
        ("{choice: [gradient, top]}", "{value: 2, when: {basis: gradient}}", "but basis may be gradient, top."),
        ("{choice: [gradient, top]}", "{value: 2, when: {basis: [gradient, top]}}", "but basis may be gradient, top."),
    ],
)
def test_what_the_gradient_decides_is_refused_beside_it(faults, basis, scale, got):
    (fault,) = faults(f"{SPACE}  rank: 4\n  basis: {basis}\n  scale: {scale}\n")
    assert "parameters.scale: must be left out unless basis is one of: top, middle, bottom, random, " in fault
    assert fault.endswith(got)


def test_what_the_gradient_decides_is_not_what_else_says(parse):
    text = f"{SPACE}  rank: {{choice: [4, 8]}}\n  basis: {{choice: [top, gradient]}}\n"
    space = parse(text + "  scale: {choice: [1, 2], when: {rank: 8}, else: 3}\n")
    drawn = {(p["rank"], p["basis"], p.get("scale")) for p in (space.suggest(trial) for trial in asked(space, 40))}
    assert drawn == {(4, "top", 3.0), (8, "top", 1.0), (8, "top", 2.0), (4, "gradient", None), (8, "gradient", None)}


def test_a_basis_that_some_trials_lack_needs_an_else(parse, faults):
    """Such a trial would have the default, beside which `scale` counts, and yet would draw no `scale`."""
    text = f"{SPACE}  rank: {{choice: [4, 8]}}\n  scale: 4\n"
    basis = "  basis: {choice: [top, gradient], when: {rank: 8}"
    (fault,) = faults(f"{text}{basis}}}\n")
    assert "parameters.basis: must end with an `else`, or with an item without `when`, since scale depends on" in fault
    space = parse(f"{text}{basis}, else: top}}\n")
    assert {(p["basis"], p.get("scale")) for p in (space.suggest(trial) for trial in asked(space, 40))} == {
        ("top", 4.0),
        ("gradient", None),
    }


def test_its_bytes_are_those_of_a_and_b_too(parse):
    space = parse(f"{SPACE}  rank: 4\n  basis: {{choice: [top, gradient]}}\n")
    described = describe(space, MODULES)
    assert (described.smallest.params, described.largest.params) == (
        {"rank": 4, "basis": "top"},
        {"rank": 4, "basis": "gradient"},
    )
    assert described.largest.size.r_parameters == described.smallest.size.r_parameters == 3 * 16
    more = described.largest.size.stored_bytes - described.smallest.size.stored_bytes
    assert more > 3 * 4 * 4 * (32 + 24)


def test_other_methods_keep_what_the_gradient_decides(parse):
    text = SPACE.replace("parameters:", "method: {choice: [lora-xs, lora]}\nparameters:")
    space = parse(f"{text}  rank: 4\n  basis: {{choice: [top, gradient]}}\n  scale: {{choice: [1, 2]}}\n")
    assert dict(space.parameters_of("lora")["scale"].alternatives[0].when) == {}
    assert dict(space.parameters_of("lora-xs")["scale"].alternatives[0].when) == {"basis": ("top",)}
    drawn = [space.suggest(trial) for trial in asked(space, 40)]
    assert {(params["method"], params.get("basis"), "scale" in params) for params in drawn} == {
        ("lora", None, True),
        ("lora-xs", "top", True),
        ("lora-xs", "gradient", False),
    }
    assert [(each.name, each.rank) for each in space.estimates()] == [("gradient-full", 4)]


def asked(space, num):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask() for _ in range(num)]
