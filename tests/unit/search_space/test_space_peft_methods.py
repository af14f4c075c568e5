"""Methods that a space names by a config of PEFT's."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraxs_search.errors import UsageError
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import PeftSettings
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space, describe, notes, place_given

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


def parse(text: str, *overrides: str) -> Space:
    return parse_space(text, source="space.yaml", folder=Path(), overrides=overrides)


def test_such_a_name_stands_where_methods_stand():
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


def test_what_is_stored_is_counted_before_anything_is_trained():
    described = describe(parse(TEXT), MODULES).methods
    assert [(each.params, each.size.r_parameters) for each in vars(described["mine"]).values()] == [
        ({"r": 16}, 2 * (64 + 16)),
        ({"r": 64}, 2 * (64 + 64)),
    ]
    assert described["scaled"].largest.size.r_parameters == 2 * 64
    size = described["mine"].smallest.size
    assert size.stored_bytes - (size.without_projection or 0) > 4 * 2 * 16 * 64, "a seed gives the projections back"
    assert described["scaled"].largest.size.without_projection is None


def test_what_peft_refuses_is_refused_before_anything_is_trained():
    for config, said in {
        "{peft_type: MISS}": "must be less than or equal to in_features",
        "{peft_type: LORA, init_lora_weights: eva}": "is computed from rows",
    }.items():
        with pytest.raises(UsageError, match=rf"`peft_methods\.mine` must be .*PEFT says: .*{said}"):
            text = TEXT.replace("{peft_type: VERA, d_initial: 2e-1}", config).replace("64", "100")
            describe(parse(text), MODULES)


FAULTS: dict[str, tuple[tuple[str, str], str, str]] = {
    "type": (("VERA", "VERRA"), "mine.peft_type", "VERA"),
    "prompts": (("VERA", "PREFIX_TUNING"), "mine.peft_type", "adapts no layers"),
    "field": (("d_initial", "d_inital"), "mine.d_inital", "did you mean d_initial?"),
    "form": (("2e-1", "{choice: [1.0, 2.0]}"), "mine.d_initial", "search it in `parameters`"),
    "dropout": (("d_initial: 2e-1", "vera_dropout: 0.1"), "mine.vera_dropout", "without dropout"),
    "name": (("  mine:", "  lora:"), "lora", "must be lower-case letters"),
    "searched": (("  r: {", "  rr: {"), "", "must be one of: r, "),
    "fixed": (("  r: {", "  d_initial: {"), "", "is fixed by `peft_methods.mine`"),
    "unnamed": (("scaled]}", "scale]}"), "", "scaled"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_name_what_was_meant(case):
    change, key, said = FAULTS[case]
    with pytest.raises(UsageError) as caught:
        parse(TEXT.replace(*change))
    place = f": peft_methods.{key}: " if key else ""
    assert any(place in line and said in line for line in caught.value.message.splitlines()), caught.value.message


def test_what_is_not_stored_is_not_counted():
    space = parse(TEXT.replace("d_initial: 2e-1", "save_projection: false"))
    assert describe(space, MODULES).methods["mine"].largest.size.without_projection is None
