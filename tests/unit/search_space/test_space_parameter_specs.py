"""Whatever is declared, what a trial draws lies in it.

Group expressions against the names of linear layers of real architectures.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from optuna.samplers import RandomSampler
from optuna.study import create_study
from optuna.trial import Trial

from loraxs_search.errors import UsageError
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.task import LinearModule
from loraxs_search.search_space.parameters import parameter_specs, resolve_modules

SPECS = parameter_specs(LoraXS)


DRAWN = """
from pathlib import Path
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.parameters import drawing_order
text = "task: sst2\\nbase_model: a/b\\nparameters:\\n  rank: 4\\n"
text += "  learning_rate: [{value: 0.1, when: {sigma: sqrt, head_init: probe}}, 0.2]\\n"
text += "  sigma: {choice: [input, sqrt]}\\n  head_init: {choice: [random, probe]}\\n"
print(*drawing_order(parse_space(text, source="s.yaml", folder=Path("/")).parameters.values()))
"""


def test_parameters_are_drawn_in_one_order_whatever_the_process():
    """Python hashes names anew in each process, so no set may decide."""
    for seed in ("1", "2"):  # these order the two parents differently in a set
        env = os.environ | {"PYTHONHASHSEED": seed}
        order = subprocess.run([sys.executable, "-c", DRAWN], env=env, stdout=subprocess.PIPE, text=True, check=True)
        assert order.stdout.split() == ["rank", "sigma", "head_init", "learning_rate"]


def asked(number: int) -> list[Trial]:
    study = create_study(sampler=RandomSampler(seed=0))
    return [study.ask() for _ in range(number)]


def test_what_is_drawn_lies_in_what_was_declared(parse):
    for name, form, lies_in in [
        ("rank", "4", lambda value: value == 4),
        ("rank", "{choice: [8, 4]}", lambda value: value in (8, 4)),
        ("rank", "{int: [4, 12], step: 4}", lambda value: value in (4, 8, 12)),
        ("rank", "{int: [4, 64], log: true}", lambda value: 4 <= value <= 64),
        ("scale", "{uniform: [0.1, 0.7], step: 0.2}", lambda value: round(value, 9) in (0.1, 0.3, 0.5, 0.7)),
        ("scale", "{log_uniform: [1.0e-3, 10]}", lambda value: 1e-3 <= value <= 10),
        ("target_modules", "{choice: [ffn, [query, value]]}", lambda value: value in ("ffn", "query+value")),
    ]:
        given = {"rank": "8", "learning_rate": "{log_uniform: [1.0e-3, 1.0e-2]}", name: form}
        section = "".join(f"  {key}: {value}\n" for key, value in given.items())
        space, seen = parse(f"task: sst2\nbase_model: a/b\nparameters:\n{section}"), set()
        for trial in asked(12):
            params = space.suggest(trial)
            assert list(params) == list(space.parameters)
            assert lies_in(params[name]), form
            assert type(params[name]) is {"int": int, "float": float}.get(SPECS[name].kind, str)
            assert trial.distributions == space.distributions()
            seen.add(params[name])
        assert (len(seen) > 1) == form.startswith("{")


def test_numbers_and_times_are_written_as_people_write_them(parse, text):
    for written in ("1E-3", ".001", '"1e-3"', "1.0e-3"):
        space = parse(text.replace("{log_uniform: [1e-4, 1e-2]}", written))
        assert space.parameters["learning_rate"].possible == (0.001,)
    for written, seconds in {"90": 90, "10m": 600, "1.5h": 5400, "2 h": 7200, "1h30m": 5400}.items():
        assert parse(text, f"search.time_budget={written}").search.time_budget == seconds


# ---- conditions ------------------------------------------------------------------------------------------------------
CONDITIONS = """\
task: sst2
base_model: a/b
parameters:
  weight_decay: {value: 0.01, when: {sigma: sqrt}}
  sigma: {choice: [input, sqrt], when: {basis: [top, gaussian], rank: 8}}
  head_learning_rate: [{value: 1.0, when: {head: full}}, 2.0]
  head: {choice: [full, output]}
  basis: {choice: [top, middle, gaussian]}
  rank: {int: [4, 12], step: 4}
  learning_rate: 1e-3
"""


def test_a_parameter_is_present_only_if_its_condition_holds(parse):
    space = parse(CONDITIONS)
    for trial in asked(20):
        params = space.suggest(trial)
        assert ("sigma" in params) == (params["basis"] in ("top", "gaussian") and params["rank"] == 8)
        assert ("weight_decay" in params) == (params.get("sigma") == "sqrt")
        assert params["head_learning_rate"] == (1.0 if params["head"] == "full" else 2.0)
        assert [name for name in space.parameters if name in params] == list(params)
        assert set(trial.params) == {"head", "basis", "rank"} | ({"sigma"} & set(params))


def test_conditional_params_can_be_counted(parse):
    # rank 8 with basis top or gaussian: 2 * 2 sigma; the rest 9 - 2 without; each with either head.
    assert parse(CONDITIONS).grid_size() == 2 * (2 * 2 + 7)
    assert parse(CONDITIONS, "parameters.learning_rate={uniform: [1, 2]}").grid_size() is None
    assert parse(CONDITIONS, "parameters.learning_rate={uniform: [1, 2], step: 0.1}").grid_size() == 22 * 11


NUM_LAYERS = 3
ATTENTION = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"}
FFN = {"intermediate.dense", "output.dense"}
BERT = [f"model.layer.{i}.{name}" for i in range(NUM_LAYERS) for name in (*sorted(ATTENTION), *sorted(FFN))]
LAYERS = [LinearModule(name, 8, 8) for name in BERT]


def test_an_expression_means_these_modules_in_every_layer():
    for expression, wanted in [
        ("attention", ATTENTION),
        ("ffn", FFN),
        ("output.dense", {"output.dense"}),
        ("dense", {"attention.output.dense"} | FFN),
        ("query+intermediate.dense", {"attention.self.query", "intermediate.dense"}),
    ]:
        assert resolve_modules(expression, LAYERS) == tuple(name for name in BERT if name.split(".", 3)[3] in wanted)


def test_attention_and_ffn_part_the_linear_layers_in_model_order():
    assert resolve_modules("all-linear", LAYERS) == tuple(BERT) == resolve_modules("ffn+attention", LAYERS)
    for last in (1, 3):
        assert resolve_modules(f"all-linear@last-{last}", LAYERS) == tuple(BERT[-last * len(BERT) // NUM_LAYERS :])


def test_each_stack_of_layers_has_its_own_last_layers_and_the_first_number_in_a_path_is_the_layer():
    stacks = [("encoder.block", 2), ("decoder.block", 4)]
    modules = [LinearModule(f"{stack}.{i}.attn.q", 8, 8) for stack, count in stacks for i in range(count)]
    assert resolve_modules("q@last-1", modules) == ("encoder.block.1.attn.q", "decoder.block.3.attn.q")
    experts = [LinearModule(f"model.layers.{i}.mlp.experts.{j}.w1", 8, 8) for i in range(2) for j in range(3)]
    assert resolve_modules("experts.1.w1", experts) == tuple(f"model.layers.{i}.mlp.experts.1.w1" for i in range(2))
    assert len(resolve_modules("w1@last-1", experts)) == 3


def test_what_is_no_expression_or_matches_nothing_is_refused():
    law = r"`target_modules` must be GROUP\[\+GROUP\.\.\.\]\[@last-K\]"
    faulty = dict.fromkeys(["", "query+", "query@last-0", "query@first-1", "*"], law)
    unknown = {
        "attention.self.value+quary": r": .*attention\.self\.query, .*'quary'",
        "attention@last-4": r"K in 1\.\.3",
    }
    for expression, told in (faulty | unknown).items():
        with pytest.raises(UsageError, match=told):
            resolve_modules(expression, LAYERS)
    with pytest.raises(UsageError, match="none in its layers"):
        resolve_modules("attention", [LinearModule("classifier", 8, 2)])
