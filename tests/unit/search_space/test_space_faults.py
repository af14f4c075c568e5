"""Every fault is told with its line, whatever else is wrong."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.study import create_study
from support.spaces import few

from loraxs_search.errors import UsageError
from loraxs_search.search_space.load import load_space

# What a line becomes | where the fault is told | what is told; first the changed line's key, where it becomes another.
TABLE = """
name: Movie/Reviews | task.name | must start with a lower-case letter or digit
kind: sequence_classification | task.kind | did you mean sequence-classification? It must be one of: 
data_files: {train: nope.jsonl} | task.data.data_files.train | does not exist
data_files | hub_id: x | task.data.hub_id | must be one of: hub
columns: {text: sentence} | task.columns.label | is required
labels: [no, "yes"] | task.labels[0] | got false (so YAML reads an unquoted no); quote it
labels: [a, a] | task.labels | must name each once, without a second 'a'
labels: [only] | task.labels | at least two labels
metrics: [accurcy, f1] | task.metrics[0] | did you mean accuracy? It must fit sequence-classification
base_model: {id: a, revison: b} | base_model.revison | did you mean revision? It must be one of: revision
base_model: {id: a, sha256: ABC} | base_model.sha256 | must be 64 hexadecimal digits
rank: {int: [0, 16], step: 4} | parameters.rank.int[0] | must be an integer in 1..65536, but got 0.
rank: {int: [16, 16]} | parameters.rank.int | must have low < high
rank: {int: [4, 15], step: 4} | parameters.rank.step | nearest: high 12 or 16
rank: {int: [4, 16], step: 0} | parameters.rank.step | must be an integer above 0
rank: {int: [4, 16], step: 4, log: true} | parameters.rank.step | must be left out beside log
rank: {uniform: [4, 16]} | parameters.rank.uniform | use int or choice
rank: {choice: [4, 8, 4]} | parameters.rank.choice[2] | must list each value once
rank: [4, 8] | parameters.rank | write {choice: [4, 8]}
rank: 010 | parameters.rank | but got "010"
rank | rnk: 4 | parameters.rnk | did you mean rank? It must be one of: rank
scale: {uniform: [0.5, .inf]} | parameters.scale.uniform[1] | got Infinity
scale: {uniform: [0.5, 2.0], step: 1.0e-30} | parameters.scale.step | into at most 1,000,000,000 steps, but got 1e-30.
scale: {log_unifrom: [1, 2]} | parameters.scale | did you mean log_uniform? It must have exactly one of: value, choice
scale | alpha: 16 | parameters.alpha | use `scale` (= alpha / rank)
target_modules: {choice: [query+value, value+query]} | parameters.target_modules.choice[1] | each value once
target_modules: all-liner@last-2 | parameters.target_modules | did you mean all-linear? It must be GROUP[+GROUP
learning_rate: {log_uniform: [1e-4, 1e-2], step: 1} | parameters.learning_rate.step | must be one of:
weight_decay: {log_uniform: [0, 1]} | parameters.weight_decay.log_uniform[0] | as logarithms need
weight_decay: {value: 0, when: {learning_rate: 1}} | parameters.weight_decay.when.learning_rate | may take any
weight_decay: {value: 0, when: {rank: 5}} | parameters.weight_decay.when.rank | must be a value that rank may have: 4, 8
weight_decay: {value: 0, when: {rank: []}} | parameters.weight_decay.when.rank | an empty list
weight_decay: {value: 0, when: {weight_decay: 0}} | parameters.weight_decay.when | must not lead back to itself
weight_decay | adam_beta1: 1.0 | parameters.adam_beta1 | must be a number of at least 0 and below 1, but got 1.0.
sigma: {choice: [input], when: {rank: 4}, else: x} | parameters.sigma.else | must be one of: choice, when
trials: yes | search.trials | must be an integer, but got true (so YAML reads an unquoted yes).
trials | scheduler: ahsa | search.scheduler | did you mean asha? It must be one of: asha, none, but got "ahsa".
trials | report_every: 500 | search.report_every | at most max_steps, but got report_every=500 and max_steps=160.
time_budget: 1:30 | search.time_budget | (90s, 10m, 1h30m, 1d), but got
metric | min_gain: .inf | promotion.min_gain | must be a finite number
metric | tolerance: -1e-3 | promotion.tolerance | must be at least 0
metric | methods: [lora-x] | promotion.methods | did you mean lora-xs? It must be among the space's methods: lora-xs
name | direction: minimize | task.direction | must be left out, or be maximize, the direction of accuracy, but got
metric | guards: {slice_loss: 0.02} | promotion.guards | must stand beside `task.slices` where it names slice_loss
name | operating_points: [0.9, 0.9] | task.operating_points | must be at most 8 numbers that increase
name | operating_points: [0.9, 1] | task.operating_points[1] | must be below 1
name | slices: [source, label] | task.slices[1] | must be a column that groups rows
metric | choose: smallest | promotion.choose | must stand beside a tolerance, which says what fewer bytes may cost
trials | pack_size: 0 | search.pack_size | must be a whole number of at least 1, or auto
trials | params: {} | search.params | must be one of
name | variant: "" | task.variant | must not be empty
data_files | data_files: {test: train.jsonl} | task.data.data_files.train | is required
"""
ROWS = [row.split(" | ") for row in TABLE.strip().splitlines()]
FAULTS = [tuple(row) if len(row) == 4 else (row[0].partition(":")[0], *row) for row in ROWS]

KEYS = {word for row in ROWS for word in re.findall(r"[a-z_]+", row[0])}
WORDS = sorted(KEYS | {"use", "when", "hub", "sst2"})


def changed(text, name, faulty):
    """Put `faulty` in the place of the line with key `name`; return the text and the line's number."""
    lines = text.splitlines()
    (index,) = [i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
    indent = len(lines[index]) - len(lines[index].lstrip())
    lines[index] = " " * indent + faulty
    return "\n".join(lines) + "\n", index + 1


def test_a_fault_is_told_with_its_line_and_key(text, faults):
    for name, faulty, key, told in FAULTS:
        broken, number = changed(text, name, faulty)
        lines = faults(broken)
        prefix = f"space.yaml:{number}: {key}: "
        found = [line for line in lines if line.startswith(prefix)]
        assert len(found) == 1 and told in found[0], (faulty, lines)
        # Beside it only what follows from it: the key that the changed line no longer holds is missed elsewhere.
        missed = ("is required", "must have one of", "must name a parameter")
        assert all(any(word in other for word in missed) for other in lines if other not in found), faulty


# Laws between two keys cannot be checked where the other one is wrong.
HANGING = r"search\.metric$|promotion\.(metric|direction|guards)$|task\.(slices|direction|metrics|labels)|.*\.when"
ALONE = [fault for fault in FAULTS if not re.match(HANGING, fault[2])]


@few
@given(st.lists(st.sampled_from(ALONE), min_size=2, max_size=8, unique_by=lambda fault: fault[0]))
def test_all_faults_are_told_at_once_in_file_order(text, faults, chosen):
    broken, numbers = text, []
    for name, faulty, _, _ in chosen:
        broken, number = changed(broken, name, faulty)
        numbers.append(number)
    lines = faults(broken)
    for number, (_, _, key, told) in zip(numbers, chosen, strict=True):
        assert any(line.startswith(f"space.yaml:{number}: {key}: ") and told in line for line in lines)
    told_at = [int(line.split(":")[1]) for line in lines]
    assert told_at == sorted(told_at)


def test_a_rule_is_held_against_the_metrics_of_a_task_with_another_fault(text, faults):
    faulty = text.replace("train.jsonl", "train.xyz")
    (rule,) = [line for line in faults(faulty.replace("metric: f1", "metric: f2")) if "task.data" not in line]
    assert ": promotion.metric: must be one of the task's metrics" in rule
    assert not [line for line in faults(faulty) if "promotion" in line]
    # The rule may be right about the metrics that are meant.
    assert not [line for line in faults(text.replace("[accuracy, f1]", "[accuracy, f2]")) if "promotion" in line]


NO_FILES = ["a\\0b.jsonl", "x" * 100_000, "a/" * 3_000, "~nobody-of-that-name/rows.jsonl"]  # errors of Python's own
# What is written in the place of what, with \n for a new line | each fault.
SPOILT = r"""
metrics: [accuracy, f1] | max_length: 8 | :1: task.metrics: is required: one or more of accuracy, f1, macro_f1, matth
learning_rate: {log_uniform: [1e-4, 1e-2]} | batch_size: 8 | :10: parameters.learning_rate: is required: a number above
metric: f1 | metric: f1\n  metric: f1 | :22: promotion.metric: must be given once, but stands at space.yaml:21 already.
metric: f1 | metric: f1\n  tolerance: !!python/name:os.system '' | :22: promotion.tolerance: must be plain YAML
metric: f1 | metric: f1\n  <<: {tolerance: 0} | :22: promotion: merge keys
metric: f1 | metric: f1\n  yes: 3 | :22: promotion: a key must be text, but got yes: quote it
metric: f1 | metric: f1\n  tolerance: !!int abc | must be what its tag says (int)
sequence-classification | regression | : task.labels: | : task.metrics[0]: | : task.metrics[1]:
data_files: {train: train.jsonl} | hub: a\n    data_files: {train: train.jsonl} | one of: hub, data_files, but got both
data_files: {train: train.jsonl} | data_files: {train: train.jsonl}\n    config: a | must stand beside hub
{train: train.jsonl} | {train: train.jsonl, test: train.jsonl}\n    test: {hub: a, split: b} | since data_files.test
data_files: {train: train.jsonl} | hub: a\n    splits: {dev: b} | splits.train: is required | splits.dev: must be
weight_decay: 0 | basis: {choice: [top], when: {head: full}}\n  head: {choice: [full], when: {basis: top}} | lead back
{int: [4, 16], step: 4} | {value: 4, when: {scale: 1}} | must stand in a list | when.scale: | sigma.when.rank[1]:
metric: f1 | choose: smallest\n  candidates: 1 | smallest must stand beside a tolerance | candidates: must be at least 2
org/name | "\ud800" | must be valid Unicode
"""
SPOILT = [[part.strip().replace("\\n", "\n") for part in row.split(" | ")] for row in SPOILT.strip().splitlines()]
SPOILT += [["train.jsonl", f'"{name}"', ": task.data.data_files.train: must be "] for name in NO_FILES]
SPOILT += [["org/name", f'"./{name}"', ": base_model.id: must be "] for name in NO_FILES[:1]]


def test_each_fault_of_a_text_is_told_and_no_other(text, faults):
    for old, new, *told in SPOILT:
        lines = faults(text.replace(old, new, 1))
        assert len(lines) == len(told), (new, lines)
        assert all(len(line) < 400 and part in line for line, part in zip(lines, told, strict=True)), (new, lines)


def test_a_name_and_its_variant_fit_the_registry(text, faults, parse):
    named = text.replace("  name: reviews\n", f"  name: {'r' * 139}\n  variant: {'v' * 60}\n")
    assert len(parse(named).task.registered_name) == 200
    (fault,) = faults(named.replace("vvv", "vvvv", 1))
    assert "task.name: must have at most 200 characters" in fault


def test_a_space_whose_name_no_file_can_have():
    for name in ("x" * 100_000, "~nobody-of-that-name/space.yaml", "a\0b", "\ud800"):
        with pytest.raises(UsageError, match="`space` must be") as caught:
            load_space(name)
        assert len(str(caught.value)) < 400


# ---- anything at all -------------------------------------------------------------------------------------------------
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
NAMES = st.sampled_from(WORDS) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


def paths(data, path=()):
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from paths(value, (*path, key))


@few
@given(st.data())
def test_whatever_stands_anywhere_is_taken_or_told(text, parse, data):
    document = yaml.safe_load(text)
    path = data.draw(st.sampled_from(list(paths(document))))
    value = data.draw(VALUES)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if path:
        holder[path[-1]] = value
    try:
        space = parse(yaml.safe_dump(document if path else value))
    except UsageError as error:
        assert error.message.count("\n") >= 1
    else:
        assert parse(space.text) == space
        assert set(space.suggest(create_study(sampler=RandomSampler(seed=0)).ask())) <= set(space.parameters)


WRITING = """
task:
  name: words
  kind: text-generation
  data: {hub: org/set}
  prompt: "{q}?"
  answer: " {a}"
  metrics: [exact_match]
base_model: org/base
parameters: {rank: 4, learning_rate: 0.001}
"""
CHOOSING = WRITING.replace("text-generation", "multiple-choice").replace('  answer: " {a}"\n', "")
OPTIONS = "  options: [a, b]\n  label: l\n  option_names: [on, off]\n  metrics: [accuracy]\n"


def test_faults_of_a_task_that_writes_or_chooses(faults, parse):
    choosing = CHOOSING.replace("  metrics: [exact_match]\n", OPTIONS)
    top_p = "  generation: {temperature: 1, top_p: 2}\n  metrics"
    for text, told in [
        (WRITING.replace("  metrics", top_p), "top_p: must be at most 1.0, but got 2."),
        (WRITING.replace("rank: 4", "rank: 4, head: full"), "head: must be left out: an adapter for text-generation"),
        (WRITING.replace("{q}?", "{q") + "search: {metric: lss}\n", "search.metric: must be the name of a metric, but"),
        (choosing, "option_names[0]: must be text, but got true (so YAML reads an unquoted on)"),
    ]:
        assert any(told in line for line in faults(text)), told
    assert parse(choosing.replace("[on, off]", "[true, false]")).task.settings["option_names"] == ["true", "false"]
