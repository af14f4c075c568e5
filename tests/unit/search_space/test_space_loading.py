"""Spaces as they are read: records, overrides, files, tasks of the catalogue, and the spaces that are shipped."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from optuna.study import create_study
from support.spaces import catalogue_task

from loraxs_search.errors import UsageError
from loraxs_search.home import shipped_space_path, shipped_spaces, shipped_tasks
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.adapter import LargestTrial
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.records.trial import Hyperparameters
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.search_space.parameters import Distribution, parameter_specs, parameters_of
from loraxs_search.search_space.sections import catalogue_entry
from loraxs_search.tasks.files import read_questions
from loraxs_search.tasks.kinds import KINDS, SequenceClassification, kind_of
from loraxs_search.tasks.prepared import load_data


def test_every_section_becomes_its_record(parse, text, folder):
    space, source = parse(text), DataSource(data_files={"train": str(folder / "train.jsonl")})
    columns = {"text": "sentence", "label": "label", "labels": ("no", "yes"), "pooling": "auto"}
    scored = {"metric": "accuracy", "direction": "maximize", "metrics": ("accuracy", "f1")}
    assert space.task == Task("reviews", "sequence-classification", source, **columns, **scored)
    assert space.base_model == BaseModelRef(id="org/name")
    params = {"n_startup_trials": 10, "reduction_factor": 2}
    assert space.search == SearchPlan(trials=4, time_budget=600.0, params=params)
    assert parse(text, "search.scheduler=none").search.params == {"n_startup_trials": 10}
    assert space.promotion == PromotionRule(metric="f1")
    assert (space.name, space.text, space.folder) == ("space", text, str(folder))


def test_every_hyperparameter_is_a_parameter_or_comes_from_elsewhere():
    elsewhere = {"max_steps", "seed", "factor_rank", "method", "method_params", "peft", "start_from", "linear_probe"}
    assert {field.name for field in fields(Hyperparameters)} - elsewhere == set(parameter_specs(LoraXS))


# ---- overrides -------------------------------------------------------------------------------------------------------
def test_overrides_are_yaml_values_put_in_before_checking(parse, text):
    overrides = ["search.max_steps=200", "search.report_every=200", "parameters.rank=8", "parameters.sigma=sqrt"]
    overrides += ["parameters.scale={choice: [1, 2]}", "task.data.data_files.validation=train.jsonl"]
    mended = ["search.trials=24", "search.trials=none", "search.trials=25"]
    space = parse(text, *mended[:1], "base_model.revision=main", *overrides, *mended[1:])
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
    (line,) = faults(CATALOGUE.format(task="stsb") + "promotion: {guards: {coverage: 0.02}}\n")
    assert "promotion.guards: must not name coverage: the task has no operating points" in line
    (line,) = faults(CATALOGUE.format(task="sst-2"))
    assert line.startswith("space.yaml:1: task: did you mean sst2? It must be one of: sst2, ")


# ---- files -----------------------------------------------------------------------------------------------------------
def test_a_file_is_found_by_path_and_by_shipped_name(folder, text, monkeypatch):
    (folder / "mine.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no fault
    assert load_space(str(folder / "mine.yaml")).task.name == "reviews"

    monkeypatch.chdir(folder)
    assert load_space("mine.yaml").name == "mine"
    (folder / "movie_reviews").mkdir()  # does not hide the shipped one
    for name in ("movie_reviews", "MOVIE-REVIEWS", "movie_reviews.yaml"):
        assert load_space(name).name == "movie_reviews"
    with pytest.raises(UsageError, match="is a folder"):
        load_space("./movie_reviews")


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


def test_every_basis_and_the_largest_sizes_a_trial_may_have_are_known(parse, text):
    assert parse(text).factor_sets() == (("top", 64),)
    chosen = parse(text, "parameters.basis={choice: [middle, bottom]}", "parameters.rank={choice: [4, 8, 100]}")
    assert chosen.factor_sets() == (("middle", 128), ("bottom", 128))
    conditional = parse(text, "parameters.basis={value: bottom, when: {rank: 4}}").factor_sets()
    assert [basis for basis, _ in conditional] == ["bottom", "top"]
    ranges = "parameters.batch_size={choice: [8, 64]}", "parameters.rank={choice: [4, 8, 32]}"
    for overrides, batch, rank in (((), 16, 16), (ranges, 64, 32)):
        adapters = tuple(("lora-xs", {"rank": own, "basis": "top", "stored_dtype": "int8"}) for own in (rank, 4))
        assert parse(text, *overrides).largest() == LargestTrial(batch, adapters)


def test_running_trials_may_be_compared_by_another_metric(parse, text, monkeypatch):
    for own, metric in (("accuracy", None), ("matthews", "matthews")):
        task = parse(text, f"search.metric={own}").task
        assert (task.report_metric, task.report_direction) == (metric, metric and "maximize")
        assert (task.metric, task.search_metric) == ("accuracy", own)
    monkeypatch.setattr(SequenceClassification, "report_metric", "f1")  # a kind may say so too
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
    (tmp_path / "tickets.csv.yaml").write_text("")
    with pytest.raises(UsageError, match=r"(?s)^(?!.*holds rows)"):
        load_space("tickets.csv.yaml")
    for wrong in ("reveiws.yaml", "reviews"):
        with pytest.raises(UsageError, match=r"^Did you mean reviews\.yaml\? "):
            load_space(wrong)
    with pytest.raises(UsageError, match=r"^Did you mean data/tickets\.csv\? "):
        read_questions("./data/ticket.csv", ("text",))


# ---- tasks of the catalogue ------------------------------------------------------------------------------------------
GLUE = {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"}
CHOICE = {"boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"}
WRITTEN = {"gsm8k", "math", "metamath_gsm8k", "metamath_math", "commonsense_170k"}
# Rows as the cards of the data sets have them; ARC has a few with numbers.
ROWS = r"""
google/boolq {"question": "is it", "answer": true, "passage": "It is."}
lighteval/piqa {"goal": "to sit", "sol1": "take a chair", "sol2": "take a lamp", "label": 1}
lighteval/siqa {"context": "Ann", "question": "Why?", "answerA": "to", "answerB": "in", "answerC": "by", "label": "3"}
Rowan/hellaswag {"activity_label": "Running", "ctx": "She", "endings": ["runs.", "flies.", "is.", "sat."], "label": "0"}
allenai/winogrande {"sentence": "_ ran.", "option1": "Ann", "option2": "The cup", "answer": "1"}
allenai/ai2_arc {"id": "x", "question": "What?", "choices": LETTERS, "answerKey": "B"}
allenai/openbookqa {"id": "x", "question_stem": "Ice is", "choices": LETTERS, "answerKey": "D"}
zwhe99/commonsense_170k {"instruction": "", "input": "", "output": "the correct answer is answer2", "answer": "answer2"}
openai/gsm8k {"question": "How many?", "answer": "It is <<1+1=2>>2.\n#### 1,002"}
DigitalLearningGmbH/MATH-lighteval {"problem": "What?", "level": "1", "solution": "So $x = \\boxed{\\frac{1}{2}}$."}
meta-math/MetaMathQA {"query": "How many?", "response": "So 2.\n#### 2\nThe answer is: 2", "type": "GSM_Rephrased"}
""".replace("LETTERS", '{"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}')
CARDS = {name: json.loads(row) for name, _, row in (line.partition(" ") for line in ROWS.strip().splitlines())}
NUMBERS = {"choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "2"}
LABELS = {"boolq": 1, "piqa": 1, "siqa": 2, "hellaswag": 0, "winogrande": 0, "arc_easy": 1, "openbookqa": 3}


def test_each_entry_is_a_whole_task():
    assert shipped_tasks() == sorted(GLUE | CHOICE | WRITTEN)
    for name in shipped_tasks():
        task, kind = catalogue_task(name), kind_of(catalogue_task(name))
        assert (task.name, task.metric) == (name, task.metrics[0])
        assert task.direction == KINDS.get(task.kind).metrics[task.metric].direction
        assert kind.model.num_outputs == (max(1, len(task.labels)) if name in GLUE else None)
        notes = [line[2:] for line in catalogue_entry(name)[0].splitlines() if line.startswith("# ")]
        hubs = {task.source.hub, *(split.hub for split in task.source.elsewhere.values())}
        assert {f"Data: https://huggingface.co/datasets/{hub}" for hub in hubs} <= set(notes)


def test_a_variant_is_a_championship_of_its_own(parse, text):
    assert parse(text).task.registered_name == "reviews"
    assert parse(text, "task.variant=de").task.registered_name == "reviews.de"
    assert parse(text, "task={use: sst2, variant: acme_1}").task.registered_name == "sst2.acme_1"


@pytest.fixture
def hub(tmp_path):
    """Folders that stand for the data sets of a task, with made-up rows in the shape of their cards."""

    def local(name: str) -> str:
        folder = tmp_path / name.replace("/", "-")
        for split in ("train", "validation", "test") if not folder.exists() else ():
            card = CARDS[name]
            key = next(key for key, value in card.items() if isinstance(value, str) and key != "id")
            rows = [{**card, key: f"{card[key]} {split} {i}"} for i in range(30)]
            rows[-1] |= NUMBERS if name == "allenai/ai2_arc" else {}
            datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        return str(folder)

    def make(task: Task) -> Task:
        source = task.source
        others = {split: replace(it, hub=local(it.hub), config=None) for split, it in source.elsewhere.items()}
        splits = {split: name.partition("[")[0] + "[:20]" for split, name in source.splits.items()}
        carved = None if source.carved_rows is None else 2
        assert source.hub is not None
        anew = replace(source, hub=local(source.hub), config=None, splits=splits, carved_rows=carved, **others)
        return replace(task, source=anew)

    return make


def test_rows_of_a_choice(hub):
    for name, label in LABELS.items():
        data = load_data(hub(catalogue_task(name)))
        assert {int(it) for rows in data.values() for it in rows.labels} == {label}, name
        rows = data["test"]
        assert rows.texts[0].strip() and "{" not in rows.texts[0]


def test_rows_of_written_answers(hub):
    expected = {"gsm8k": {"1002"}, "math": {r"\frac{1}{2}"}, "commonsense_170k": {"answer2"}}
    last = {"metamath_gsm8k": {"1,002"}, "metamath_math": {r"\frac{1}{2}"}}
    for name in WRITTEN:
        data = load_data(hub(catalogue_task(name)))
        references = {split: set(rows.labels.tolist()) for split, rows in data.items()}
        assert references["test"] == references["validation"] == (expected | last)[name]
        assert references["train"] == expected.get(name, {"2"})


# ---- shipped spaces --------------------------------------------------------------------------------------------------
SPACES = shipped_spaces()


@pytest.mark.parametrize("name", SPACES)
def test_a_shipped_space_is_sound_can_be_copied_and_opens_with_its_command(name, say, tmp_path):
    space = load_space(name)
    params = space.suggest(create_study().ask())
    own = parameters_of(space.parameters, space.method_of(params).name)
    always = {parameter.name for parameter in own.values() if not all(each.when for each in parameter.alternatives)}
    assert space.name == name
    assert always <= set(params) - {"method"} <= set(own)
    copy = tmp_path / f"{name}.yaml"
    assert say("spaces", "copy", name, str(copy)).ok
    schema = shipped_space_path(name).with_name("space.schema.json")
    assert f"\n# yaml-language-server: $schema={schema}\n" in copy.read_text()
    wherever = {"text": "", "source": "", "folder": ""}
    assert replace(load_space(str(copy)), **wherever) == replace(space, **wherever)
    opening = shipped_space_path(name).read_text().split("\n\n")[0]
    assert "# Needs: " in opening
    assert f"# Run:       loraxs-search launch {name}\n" in opening
    (found,) = re.findall(rf"# Override:  loraxs-search launch {name} (--set .*)", opening)
    assert load_space(name, overrides=[word for word in shlex.split(found) if word != "--set"]) != space


def test_rungs_end_at_max_steps():
    for name in SPACES:
        plan = load_space(name).search
        rung = plan.report_every
        while rung < plan.max_steps:
            rung *= int(plan.params.get("reduction_factor", 2))
        assert rung == plan.max_steps, name
