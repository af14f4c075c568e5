from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from loraxs_search.errors import UsageError
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.adapter import LargestTrial
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.search_space.parameters import Distribution, parameter_specs
from loraxs_search.tasks.files import read_questions


def test_every_section_becomes_its_record(parse, text, folder):
    space = parse(text)

    assert space.task == Task(
        name="reviews",
        kind="sequence-classification",
        source=DataSource(data_files={"train": str(folder / "train.jsonl")}),
        text="sentence",
        label="label",
        labels=("no", "yes"),
        metric="accuracy",
        direction="maximize",
        metrics=("accuracy", "f1"),
        pooling="auto",
    )
    assert space.base_model == BaseModelRef(id="org/name")
    assert space.search == SearchPlan(
        trials=4, time_budget=600.0, params={"n_startup_trials": 10, "reduction_factor": 2}
    )
    assert parse(text, "search.scheduler=none").search.params == {"n_startup_trials": 10}
    assert space.promotion == PromotionRule(metric="f1")
    assert (space.name, space.text, space.folder) == ("space", text, str(folder))


def test_every_hyperparameter_is_a_parameter_or_comes_from_elsewhere():
    from loraxs_search.records.trial import Hyperparameters

    elsewhere = {"max_steps", "seed", "factor_rank", "method", "method_params", "peft", "start_from", "linear_probe"}
    assert {field.name for field in fields(Hyperparameters)} - elsewhere == set(parameter_specs(LoraXS))


# ---- overrides -------------------------------------------------------------------------------------------------------
def test_overrides_are_yaml_values_put_in_before_checking(parse, text):
    space = parse(
        text,
        "search.trials=24",
        "search.max_steps=200",
        "search.report_every=200",
        "parameters.rank=8",
        "parameters.scale={choice: [1, 2]}",
        "base_model.revision=main",
        "task.data.data_files.validation=train.jsonl",
        "parameters.sigma=sqrt",
        "search.trials=none",  # a later one mends it
        "search.trials=25",
    )
    assert (space.search.trials, space.search.max_steps) == (25, 200)
    assert space.parameters["rank"].alternatives[0].distribution == Distribution("constant", (8,))
    assert space.parameters["scale"].alternatives[0].distribution == Distribution("choice", (1.0, 2.0))
    assert space.base_model == BaseModelRef(id="org/name", revision="main")
    assert space.task.source.data_files["validation"].endswith("/train.jsonl")
    assert space.text.startswith('# space.yaml with --set "search.trials=24"\n')
    assert yaml.safe_load(space.text)["search"]["trials"] == 25


FAULTY = {  # an override, and what is told of it
    "search.trails=3": "search.trails: did you mean trials? It must be one of: trials, ",
    "search.trials": "must be path.to.key=value, but got",
    "parameters.weight_decay.choice=3": "parameters.weight_decay.choice: must lead through keys, but",
    "parameters.rank=[": "must be valid YAML, but",
    "trials=3": "did you mean search.trials?",
}


def test_a_faulty_override_is_told_as_such(faults, text):
    for override, told in FAULTY.items():
        (line,) = faults(text, override)
        assert line.startswith(f"--set {override}:") and told in line


# ---- catalogue -------------------------------------------------------------------------------------------------------
CATALOGUE = "task: {task}\nbase_model: org/name\nparameters: {{rank: 4, learning_rate: 1e-3}}\n"


def test_a_catalogue_task_with_keys_changed(parse, folder):
    task = parse(CATALOGUE.format(task="{use: mrpc, max_length: 64, metric: accuracy, data: {revision: abc}}")).task
    assert (task.max_length, task.metric, task.metrics, task.text_pair) == (64, "accuracy", ("accuracy",), "sentence2")
    assert (task.source.hub, task.source.revision) == ("nyu-mll/glue", "abc")

    local = parse(CATALOGUE.format(task="{use: stsb, data: {data_files: {train: train.jsonl}}}")).task
    assert local.source == DataSource(data_files={"train": str(folder / "train.jsonl")})
    assert (local.kind, local.labels, local.direction) == ("regression", (), "maximize")
    assert parse(CATALOGUE.format(task="{use: stsb, metric: mse}")).task.direction == "minimize"


def test_what_is_named_anew_is_not_taken_from_where_the_catalogue_has_it(parse):
    changed = "{use: gsm8k, messages: [{role: user, content: '{question}'}]}"
    settings = parse(CATALOGUE.format(task=changed)).task.settings
    assert settings["messages"] and not settings.get("prompt")
    own = "{use: metamath_gsm8k, data: {splits: {train: 'train[:-500]', test: 'train[-500:]'}}}"
    source = parse(CATALOGUE.format(task=own)).task.source
    assert source.splits == {"train": "train[:-500]", "test": "train[-500:]"}
    assert set(source.elsewhere) == {"validation"}
    elsewhere = "{use: arc_easy, data: {test: {hub: org/mine, split: test}}}"
    source = parse(CATALOGUE.format(task=elsewhere)).task.source
    assert (set(source.splits), set(source.elsewhere)) == ({"train", "validation"}, {"test"})


def test_faults_of_a_catalogue_task(faults):
    (line,) = faults(CATALOGUE.format(task="stsb") + "promotion: {guards: {negative_flips: 0.02}}\n")
    assert "promotion.guards: must not name negative_flips: the task's answers are numbers" in line
    (line,) = faults(CATALOGUE.format(task="sst-2"))
    assert line.startswith("space.yaml:1: task: did you mean sst2? It must be one of: sst2, ")


# ---- files -----------------------------------------------------------------------------------------------------------
def test_a_file_is_found_by_path_and_by_shipped_name(folder, text, monkeypatch):
    (folder / "mine.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no fault
    assert load_space(str(folder / "mine.yaml")).task.name == "reviews"

    monkeypatch.chdir(folder)
    assert load_space("mine.yaml").name == "mine"
    for name in ("movie_reviews", "MOVIE-REVIEWS", "movie_reviews.yaml"):
        assert load_space(name).name == "movie_reviews"


UNREADABLE = [  # what a file holds, what is told, and with what to do
    (b"", "f.yaml:1: must hold keys: task, .* but holds nothing", ""),
    (b"a: 1\n\xff\xfe\x00", "f.yaml:2: must be text in UTF-8, but byte 5 is not", "save the file"),
    (b"a: 1\nb: \x00", r"f.yaml:2: must be text, but holds the character '\\x00'", "loraxs-search spaces copy"),
    (b"x" * 1_000_001, "at most 1000000 bytes", ""),
    (b"task:\n  name: [a\n", "f.yaml:3:1: must be valid YAML, but while parsing a flow sequence", "must be closed"),
    (b"task:\n\tname: a\n", "f.yaml:2:1: must be valid YAML, but .*'\\\\t'", "indent with spaces"),
    (b"task: *nowhere\n", "f.yaml:1:7: must be valid YAML, but found undefined alias", "must stand in quotes"),
    (b"task: a\n---\ntask: b\n", "f.yaml:2:1: must be valid YAML, but .*another document", "leave out the line ---"),
    (b"task: &a [*a]\n", "f.yaml:1: .*at most 30 levels deep", ""),
    (b"[" * 5000, "levels deep|valid YAML", ""),
    (b"a: &a [%s]\nb: &b [%s]\nc: [%s]\n" % (b"1," * 99, b"*a," * 99, b"*b," * 99), "at most 20000 values", "aliases"),
]


def test_a_file_that_is_no_space_is_told(tmp_path):
    for content, told, remedy in UNREADABLE:
        file = tmp_path / "f.yaml"
        file.write_bytes(content)
        with pytest.raises(UsageError, match=told) as error:
            load_space(str(file))
        assert error.value.hint and remedy in error.value.hint, content


def test_a_folder_does_not_hide_the_shipped_space_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "movie_reviews").mkdir()
    assert load_space("movie_reviews").name == "movie_reviews"
    with pytest.raises(UsageError, match="is a folder"):
        load_space("./movie_reviews")


def sized(rank):
    return {"rank": rank, "basis": "top"}


def test_every_basis_and_the_largest_sizes_a_trial_may_have_are_known(parse, text):
    assert parse(text).factor_sets() == (("top", 64),)
    chosen = parse(text, "parameters.basis={choice: [middle, bottom]}", "parameters.rank={choice: [4, 8, 100]}")
    assert chosen.factor_sets() == (("middle", 128), ("bottom", 128))
    conditional = parse(text, "parameters.basis={value: bottom, when: {rank: 4}}").factor_sets()
    assert [basis for basis, _ in conditional] == ["bottom", "top"]
    assert parse(text).largest() == LargestTrial(16, (("lora-xs", sized(16)), ("lora-xs", sized(4))))
    ranges = "parameters.batch_size={choice: [8, 64]}", "parameters.rank={choice: [4, 8, 32]}"
    assert parse(text, *ranges).largest() == LargestTrial(64, (("lora-xs", sized(32)), ("lora-xs", sized(4))))


def test_running_trials_may_be_compared_by_another_metric(parse, text):
    for override, metric in {
        "search.trials=3": None,
        "search.metric=accuracy": None,
        "search.metric=matthews": "matthews",
    }.items():
        task = parse(text, override).task
        assert (task.report_metric, task.report_direction) == (metric, metric and "maximize")
        assert (task.metric, task.search_metric) == ("accuracy", metric or "accuracy")


def test_a_kind_may_say_what_running_trials_are_compared_by(parse, text, monkeypatch):
    from loraxs_search.tasks.kinds import SequenceClassification

    monkeypatch.setattr(SequenceClassification, "report_metric", "f1")
    assert parse(text).task.report_metric == "f1"
    assert parse(text, "search.metric=accuracy").task.report_metric is None
    assert parse(text, "task.metric=f1").task.report_metric is None


def test_layers_are_not_searched_where_none_are_adapted(parse):
    searched = "{choice: [attention, ffn]"
    for methods, remedy in (("[lora-xs, full]", "add `when: {method: [lora-xs]}`"), ("[full]", "leave it out")):
        text = f"task: sst2\nbase_model: a/b\nmethod: {{choice: {methods}}}\nparameters:\n  learning_rate: 1.0e-3\n"
        text += "  rank: 4\n" if "lora-xs" in methods else ""
        with pytest.raises(UsageError) as refused:
            parse(f"{text}  target_modules: {searched}}}\n")
        assert "space.yaml:" in refused.value.message and remedy in refused.value.message
        assert parse(f"{text}  target_modules: attention\n").methods
        if "lora-xs" in methods:
            assert parse(f"{text}  target_modules: {searched}, when: {{method: [lora-xs]}}}}\n").methods


# ---- what people give in place of a file -----------------------------------------------------------------------------
def test_a_mapping_is_a_space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"s": "fine", "l": 1}\n')
    task = {"name": "t", "kind": "sequence-classification", "labels": ("no", "yes"), "metrics": ["accuracy"]}
    task |= {"data": {"data_files": {"train": Path("rows.jsonl")}}, "columns": {"text": "s", "label": "l"}}
    parameters = {"rank": {"choice": np.array([4, np.int64(8)])}, "learning_rate": np.float32(0.5)}
    task["labels"] = np.array(task["labels"])
    space = load_space({"task": task, "base_model": "a/b", "parameters": parameters}, {"search.trials": np.int64(3)})
    assert space.task.labels == ("no", "yes")
    assert space.task.source.data_files == {"train": str(tmp_path / "rows.jsonl")}
    assert space.parameters["rank"].possible == (4, 8)
    assert space.search.trials == 3
    assert parse_space(space.text, source="s.yaml", folder=tmp_path, name=space.name).parameters == space.parameters
    (tmp_path / "mine.yaml").write_text(space.text)
    assert load_space(tmp_path / "mine.yaml", {"base_model": tmp_path}).base_model.id == str(tmp_path)
    assert load_space(tmp_path / "mine.yaml", "search.trials=4").search.trials == 4
    with pytest.raises(UsageError) as caught:
        load_space({"base_model": "a/b", "parameters": parameters})
    assert "task: is required" in caught.value.message
    with pytest.raises(UsageError) as refused:
        load_space(7)
    assert "mapping" in str(refused.value.hint)


def test_a_file_that_is_nearly_named_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.yaml").write_text("")
    (tmp_path / "reviews.csv").write_text("text,label\n")  # no space: it is not meant
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tickets.csv").write_text("text,label\n")
    with pytest.raises(UsageError, match="holds rows"):
        load_space("data/tickets.csv")
    for wrong in ("reveiws.yaml", "reviews"):
        with pytest.raises(UsageError, match=r"^Did you mean reviews\.yaml\? "):
            load_space(wrong)
    with pytest.raises(UsageError, match=r"^Did you mean data/tickets\.csv\? "):
        read_questions("./data/ticket.csv", ("text",))
