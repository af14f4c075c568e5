"""Methods that a space names by a config of PEFT's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from support.spaces import few

from loraxs_search.errors import UsageError
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import AdapterSize, Hyperparameters, PeftSettings
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import ShapeDescription, Space, describe, notes, place_given

OWN = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")


def bert(num_layers, width):
    """The linear layers of a BERT-like model."""
    sides = dict.fromkeys(OWN, (width, width))
    sides |= {"intermediate.dense": (width, 4 * width), "output.dense": (4 * width, width)}
    names = [(f"bert.encoder.layer.{i}.{own}", *size) for i in range(num_layers) for own, size in sides.items()]
    return tuple(LinearModule(*module) for module in names)


MINI = bert(6, 384)
SPACE = "task: sst2\nbase_model: a/b\nparameters:\n  learning_rate: 1e-3\n"


# ---- hyperparameters -------------------------------------------------------------------------------------------------
def test_params_become_hyperparameters_with_the_records_defaults(parse):
    space = parse(SPACE + "  rank: {choice: [4, 100]}\nsearch: {max_steps: 80}\n")
    rates, targets = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}, tuple(module.name for module in MINI)
    # Other records have no `head_init` and no rounding: such trials start at random, and are stored as they are.
    rates |= {"max_steps": 80, "seed": 7, "factor_rank": 128, "head_init": "probe", "stored_dtype": "int8"}
    expected = Hyperparameters(rank=4, target_modules=targets, **rates)
    assert space.hyperparameters({"rank": 4, "learning_rate": 1e-3}, MINI, 7) == expected


def test_every_parameter_reaches_the_hyperparameters(parse):
    given = {
        "rank": 8,
        "scale": 2.0,
        "sigma": "sqrt",
        "basis": "gaussian",
        "stored_dtype": "float16",
        "head": "output",
        "head_init": "random",
    }
    given |= {"init_std": 1e-4, "learning_rate": 1e-3, "head_learning_rate": 2e-3, "weight_decay": 0.1}
    given |= {"adam_beta1": 0.8, "adam_beta2": 0.98, "lr_schedule": "cosine", "warmup_ratio": 0.5}
    given |= {"max_grad_norm": 0.0, "batch_size": 4}
    made = parse(SPACE + "  rank: 8\n").hyperparameters(given | {"target_modules": "ffn@last-1"}, MINI, 0)
    assert {name: getattr(made, name) for name in given} == given
    assert made.target_modules == ("bert.encoder.layer.5.intermediate.dense", "bert.encoder.layer.5.output.dense")


def test_a_rank_or_group_that_does_not_fit_the_model_is_refused(parse):
    space = parse(SPACE + "  rank: {int: [4, 500]}\n")
    with pytest.raises(UsageError, match=r"1\.\.384, .*rank=500 for bert\.encoder\.layer\.0\."):
        space.hyperparameters({"rank": 500, "learning_rate": 1e-3}, MINI, 0)
    with pytest.raises(UsageError, match="'q_proj'"):
        space.hyperparameters({"rank": 4, "learning_rate": 1e-3, "target_modules": "q_proj"}, MINI, 0)
    with pytest.raises(UsageError, match="rank=500"):
        describe(space, MINI)


# ---- describe --------------------------------------------------------------------------------------------------------
def test_the_quickstart_is_described(parse):
    head = {"classifier.weight": (2, 384), "classifier.bias": (2,)}
    described = describe(load_space("movie_reviews"), MINI, heads={"full": head})

    assert described.combinations is None
    sizes = {group.expression: len(group.modules) for group in described.groups}
    assert sizes == {"attention": 24, "ffn": 12, "all-linear": 36}
    assert described.smallest == ShapeDescription({"rank": 4}, "ffn", "full", AdapterSize(12 * 16, 770, 1512))
    assert described.largest == ShapeDescription({"rank": 16}, "all-linear", "full", AdapterSize(9216, 770, 10632))


def test_a_space_may_choose_the_head(parse):
    space = parse(SPACE + "  rank: 4\n  head: {choice: [full, output]}\n")
    heads = {"full": {"dense": (32, 32), "out": (2, 32)}, "output": {"out": (2, 32)}}
    described = describe(space, MINI, heads=heads)
    assert (described.smallest.head, described.smallest.size.head_parameters) == ("output", 64)
    assert (described.largest.head, described.largest.size.head_parameters) == ("full", 1088)


def test_the_extremes_are_those_a_trial_can_reach(parse):
    searched = "  rank: [{int: [4, 64], when: {target_modules: ffn}}, 8]\n"
    searched += "  target_modules: {choice: [attention, ffn, all-linear]}\n"
    described = describe(parse(SPACE + searched), MINI)
    assert (described.smallest.params["rank"], described.smallest.target_modules) == (4, "ffn")
    assert (described.largest.params["rank"], described.largest.target_modules) == (64, "ffn")
    assert described.combinations == 61 + 2


def test_only_ranks_that_meet_a_module_are_held_against_it(parse):
    modules = (*bert(1, 64), LinearModule("bert.encoder.layer.0.attention.tiny", 64, 2))
    fits = "  rank: {choice: [2, 16]}\n  target_modules: [{value: tiny, when: {rank: 2}}, {value: ffn}]\n"
    assert describe(parse(SPACE + fits), modules).largest.params == {"rank": 16}
    with pytest.raises(UsageError, match=r"1\.\.2, .*rank=16 for .*tiny"):
        describe(parse(SPACE + fits.replace("rank: 2}", "rank: 16}")), modules)


def test_a_limit_in_bytes_that_no_adapter_meets_is_refused_and_one_that_some_meet_is_noted(parse):
    """Such a search would train everything and promote nothing."""
    written = SPACE + "  rank: {choice: [4, 100]}\n"
    described = describe(parse(written), MINI)
    smallest, largest = described.smallest.size.stored_bytes, described.largest.size.stored_bytes
    assert not described.notes
    with pytest.raises(UsageError, match=rf"promotion\.max_bytes: .* {smallest:,} bytes, but got {smallest - 1:,}"):
        describe(parse(f"{written}promotion: {{max_bytes: {smallest - 1}}}\n"), MINI)
    (note,) = describe(parse(f"{written}promotion: {{max_bytes: {largest - 1}}}\n"), MINI).notes
    assert f"max_bytes={largest - 1:,} are never promoted" in note
    assert not describe(parse(f"{written}promotion: {{max_bytes: {largest}}}\n"), MINI).notes


# ---- methods that a space names by a config of PEFT's ----------------------------------------------------------------
MODULES = tuple(LinearModule(f"bert.encoder.layer.{i}.attention.self.query", 64, 64) for i in range(2))
TEXT = """\
task: sst2
base_model: a/b
method: {choice: [lora-xs, mine, scaled]}
peft_methods:
  mine: {peft_type: VERA, d_initial: 2e-1}
  scaled: {peft_type: IA3, feedforward_modules: []}
parameters:
  learning_rate: [{log_uniform: [1.0e-2, 1.0e-1], when: {r: 64}}, {value: 2.0e-3, when: {method: scaled}}, 1.0e-3]
  rank: {choice: [4, 8]}
  r: {choice: [16, 64]}
promotion: {methods: [mine]}
"""


def test_such_a_name_stands_where_methods_stand(parse):
    space = parse(TEXT)
    assert space.peft_methods == {
        "mine": PeftSettings("VERA", {"d_initial": 0.2}, {"r": "int"}),
        "scaled": PeftSettings("IA3", {"feedforward_modules": []}, {}),
    }
    assert from_json(Space, to_json(space)) == space
    hyper = space.hyperparameters({"method": "mine", "r": 64, "learning_rate": 0.02}, MODULES, 0)
    assert (hyper.method, hyper.method_params, hyper.peft) == ("mine", {"r": 64}, space.peft_methods["mine"])
    assert [space.may_be_candidate(name) for name in space.methods] == [False, True, False]
    assert "trials of methods mine and scaled cannot share passes" in notes(space)[0]
    assert place_given(space, {"method": "mine", "r": 16})[0] == {"method": "mine", "r": 16}
    assert place_given(space, {"method": "scaled", "r": 16})[1]


def test_what_is_stored_is_counted_before_anything_is_trained(parse):
    described = describe(parse(TEXT), MODULES).methods
    counted = [(each.params, each.size.r_parameters) for each in vars(described["mine"]).values()]
    assert counted == [({"r": 16}, 2 * (64 + 16)), ({"r": 64}, 2 * (64 + 64))]
    assert described["scaled"].largest.size.r_parameters == 2 * 64
    size = described["mine"].smallest.size
    assert size.stored_bytes - (size.without_projection or 0) > 4 * 2 * 16 * 64, "a seed gives the projections back"
    assert described["scaled"].largest.size.without_projection is None
    projected = parse(TEXT.replace("d_initial: 2e-1", "save_projection: false"))
    assert describe(projected, MODULES).methods["mine"].largest.size.without_projection is None


def test_what_peft_refuses_is_refused_before_anything_is_trained(parse):
    for config, said in {
        "{peft_type: MISS}": "must be less than or equal to in_features",
        "{peft_type: LORA, init_lora_weights: eva}": "is computed from rows",
    }.items():
        with pytest.raises(UsageError, match=rf"`peft_methods\.mine` must be .*PEFT says: .*{said}"):
            text = TEXT.replace("{peft_type: VERA, d_initial: 2e-1}", config).replace("64", "100")
            describe(parse(text), MODULES)


def test_faults_name_what_was_meant(faults):
    for old, new, place, said in [
        ("VERA", "VERRA", ": peft_methods.mine.peft_type: ", "VERA"),
        ("VERA", "PREFIX_TUNING", ": peft_methods.mine.peft_type: ", "adapts no layers"),
        ("d_initial", "d_inital", ": peft_methods.mine.d_inital: ", "did you mean d_initial?"),
        ("2e-1", "{choice: [1.0, 2.0]}", ": peft_methods.mine.d_initial: ", "search it in `parameters`"),
        ("d_initial: 2e-1", "vera_dropout: 0.1", ": peft_methods.mine.vera_dropout: ", "without dropout"),
        ("  mine:", "  lora:", ": peft_methods.lora: ", "must be lower-case letters"),
        ("  r: {", "  rr: {", "", "must be one of: r, "),
        ("  r: {", "  d_initial: {", "", "is fixed by `peft_methods.mine`"),
        ("scaled]}", "scale]}", "", "scaled"),
    ]:
        assert any(place in line and said in line for line in faults(TEXT.replace(old, new))), new


# ---- params that people give -----------------------------------------------------------------------------------------
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


def test_what_no_trial_could_have_is_a_fault(parse):
    for text, params, law in [
        (CONDITIONS, {"rank": 8}, "`rank` must come with what decides whether a trial has it: add --set basis=..."),
        (CONDITIONS, {"basis": "bottom", "sigma": "sqrt"}, "`sigma` must be left out of a trial with basis bottom"),
        (CONDITIONS, {"basis": "top", "rank": 16}, "`rank` must be as the space has it, one of 4, 8, but got 16"),
        (CONDITIONS, {"learning_rate": 0.9}, "`learning_rate` must be as the space has it, in 0.001..0.1"),
        (CONDITIONS, {"learning_rate": True}, "`learning_rate` must be a number above 0, but got true"),
        (CONDITIONS, {"basis": "bottom", "rank": "1_6"}, '`rank` must be an integer in 1..65536, but got "1_6"'),
        (CONDITIONS, {"weight_decay": 0.1}, "`weight_decay` must be a parameter of the space"),
        (METHODS, {"basis": "top"}, "`basis` must come with what decides whether a trial has it: add --set method="),
        (METHODS, {"basis": "top", "method": "lora"}, "`basis` must be left out"),
    ]:
        _, (fault,) = place_given(parse(text), params)
        assert law in fault
    wrong = {"rnak": 3, "basis": "bottom", "sigma": "sqrt", "learning_rate": "fast"}
    assert len(place_given(parse(CONDITIONS), wrong)[1]) == 3


def test_what_is_not_given_is_as_in_the_source_and_what_another_method_or_condition_lacks_is_left_behind(parse):
    space, methods = parse(CONDITIONS), parse(METHODS)
    source = {"basis": "top", "rank": 8, "learning_rate": 0.01, "sigma": "sqrt", "batch_size": 8}
    assert place_given(space, {"rank": "4", "learning_rate": "1e-2"}, source) == ({**source, "rank": 4}, [])
    assert "sigma" not in place_given(space, {"basis": "bottom", "rank": 16}, source)[0]
    assert "rank" in place_given(space, {"basis": "bottom"}, source)[1][0], "a rank of 8 does not go with it"
    source = {"method": "lora-xs", "rank": 4, "learning_rate": 0.01, "basis": "gaussian"}
    made = place_given(methods, {"method": "lora", "rank": 8}, source)
    assert made == ({"method": "lora", "rank": 8, "learning_rate": 0.01}, [])


@few
@given(st.data())
def test_whatever_a_trial_of_the_space_has_can_be_given(parse, data):
    made = parse(data.draw(st.sampled_from([CONDITIONS, METHODS])))
    choices = {"method": ["lora-xs", "lora"], "basis": ["top", "gaussian"], "rank": [4, 8], "rank[1]": [16, 32]}
    drawn = {name: st.sampled_from(values) for name, values in choices.items()}
    drawn |= {"learning_rate": st.floats(1e-3, 1e-1), "sigma": st.sampled_from(["input", "sqrt"])}
    params = made.suggest(FixedTrial(data.draw(st.fixed_dictionaries(drawn))))
    assert place_given(made, params) == (params, [])
    assert place_given(made, {}, params)[0] == params
