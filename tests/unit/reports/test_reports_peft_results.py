"""Results as PEFT's method comparison writes them: the same keys, null where a study does not know."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK
from support.toys import HYPERPARAMETERS, adapter

from loraxs_search.errors import HomeError
from loraxs_search.records import BaseModelRef
from loraxs_search.reports import compare
from loraxs_search.reports.peft_results import peft_result, write_peft_results

# What PEFT 0.21's method_comparison/MetaMathQA/utils.py writes.
RUN = {"created_at", "total_time", "experiment_name", "peft_branch", "train_config", "peft_config", "error_msg"}
MEMORY = {"accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th"}
TRAIN = {"train_time", "file_size", "num_trainable_params", "num_total_params", "status", "metrics", *MEMORY}
META = {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info"}
CONFIG = {
    *("model_id", "dtype", "max_seq_length", "batch_size", "batch_size_eval", "max_steps", "eval_steps", "compile"),
    *("use_gc", "query_template", "seed", "grad_norm_clip", "optimizer_type", "optimizer_kwargs", "lr_scheduler"),
    *("use_amp", "autocast_adapter_dtype", "generation_kwargs", "attn_implementation", "init_kv_cache_prefix"),
}
REPORT = {
    *("step", "valid accuracy", "train loss", "train samples", "train time", "eval time", "tokens / sec"),
    *("mem allocated avg", "mem reserved avg", "elapsed time"),
}
LAST = {"step", "test accuracy", "train loss", "train samples", "train total tokens", "forgetting"}


@pytest.fixture
def folder(fresh_home):
    """A study whose best trial is stored and has answered the test rows."""
    folder = searched("s", [Tried({"method": "lora-xs", "learning_rate": 0.001}, 0.75, 2000)])
    confirm(folder, "00000", [0.75, 0.5], [0, 1, 1, 0], [0, 1, 1, 1])
    hyper = replace(HYPERPARAMETERS, seed=3, batch_size=8)
    adapter(folder.adapter_path("00000"), "00000", hyperparameters=hyper, base_model=BaseModelRef("b", "commit"))
    return folder


def result_of(name="s"):
    comparison = compare([name])
    return peft_result(comparison, comparison.groups[0])


def test_it_has_the_keys_of_a_result_and_no_others(folder):
    result = result_of()
    assert set(result) == {"run_info", "train_info", "meta_info"}
    assert set(result["run_info"]) == RUN
    assert set(result["run_info"]["train_config"]) == CONFIG
    assert set(result["train_info"]) == TRAIN
    assert set(result["meta_info"]) == {*META, "loraxs_search"}
    *reports, last = result["train_info"]["metrics"]
    assert [set(report) for report in reports] == [REPORT, REPORT]
    assert set(last) == LAST


def test_it_has_what_is_recorded(folder):
    result = result_of()
    run, train, meta = (result[name] for name in ("run_info", "train_info", "meta_info"))
    assert (run["experiment_name"], run["peft_config"]) == ("lora-xs/s-00000", {})
    config = run["train_config"]
    assert (config["model_id"], config["seed"], config["batch_size"], config["max_steps"]) == ("b", 3, 8, 20)
    assert config["optimizer_kwargs"] == {"lr": 0.001, "head_lr": 0.001, "weight_decay": 0.0}
    assert (train["file_size"], train["num_trainable_params"], train["train_time"]) == (2000, 110, 2.0)
    first, second, last = train["metrics"]
    assert (first["step"], first["valid accuracy"], first["train samples"]) == (10, 0.75, 80)
    assert (second["train time"], second["tokens / sec"]) == (1.0, 1000.0)
    assert (last["step"], last["test accuracy"], last["train total tokens"]) == (20, 0.75, 2000)
    assert meta["model_info"]["sha"] == "commit"
    assert (meta["loraxs_search"]["seed_scores"], meta["loraxs_search"]["compared_by"]) == (
        [0.75, 0.5],
        {"method": "lora-xs"},
    )


def test_what_a_study_does_not_know_is_null(folder):
    train, meta = result_of()["train_info"], result_of()["meta_info"]
    assert {train[name] for name in MEMORY} == {None} == set(meta["system_info"].values())
    assert train["num_total_params"] is None


def test_an_adapter_that_is_not_stored_yet_has_what_its_trial_drew(fresh_home):
    searched("s", [Tried({"learning_rate": 0.01}, 0.5)], finished=False)
    result = result_of()
    assert result["run_info"]["peft_config"] is None
    assert result["run_info"]["train_config"]["optimizer_kwargs"] == {"lr": 0.01, "head_lr": None, "weight_decay": None}
    *reports, last = result["train_info"]["metrics"]
    assert [entry["train samples"] for entry in (*reports, last)] == [None] * 3
    assert last["test accuracy"] is None


def test_a_metric_that_is_no_share_of_right_answers_is_no_accuracy(fresh_home):
    searched("s", [Tried({}, 0.5)], task=replace(TASK, metric="matthews", metrics=("matthews",)))
    report = result_of()["train_info"]["metrics"][0]
    assert (report["valid accuracy"], report["valid matthews"]) == (None, 0.5)


def test_accuracy_is_exported_beside_a_metric_that_is_no_share(fresh_home):
    searched("s", [Tried({}, 0.5)], task=replace(TASK, metric="f1", metrics=("f1", "accuracy")))
    report = result_of()["train_info"]["metrics"][0]
    assert (report["valid accuracy"], report["valid f1"]) == (0.5, 0.5)


def test_a_file_for_each_group_by_the_name_that_peft_gives_it(fresh_home, tmp_path):
    searched("s", [Tried({"method": name}, 0.5) for name in ("lora-xs", "lora")])
    comparison = compare(["s"])
    for _ in range(2):  # again: replaced
        paths = write_peft_results(comparison, tmp_path / "results")
    assert [path.name for path in paths] == ["lora-xs--s-00000.json", "lora--s-00001.json"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(path.name for path in paths)
    assert json.loads(paths[1].read_text())["run_info"]["experiment_name"] == "lora/s-00001"
    assert write_peft_results(compare(["s"], max_bytes=1), tmp_path / "results") == []


def test_a_folder_that_cannot_be_written_says_so(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="must be writable"):
        write_peft_results(compare(["s"]), tmp_path / "file")
