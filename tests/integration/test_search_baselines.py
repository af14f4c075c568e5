"""Baselines of real searches: each study has its own, from a host that may die, and none fails for want of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from faults import faulty_baselines
from support import simulated_host

from loraxs_search.log.study_log import SilentView
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.launch import Driver, launch_together, new_study
from loraxs_search.search.driver.result import SearchResult
from loraxs_search.search_space.load import load_space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import connect, ensure_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
NAMES = ["constant", "tfidf", "features"]
SHORT = ("search.trials=2", "search.scheduler=none", "promotion.seeds=0")


@pytest.fixture
def search_with(
    ray_here: None, in_search_home: Path, tiny_space: Path, tmp_path: Path
) -> Callable[[Literal["dies once", "raises"]], SearchResult]:
    """Search the tiny space on hosts whose baselines go wrong."""

    def search(fault: Literal["dies once", "raises"]) -> SearchResult:
        from ray import cloudpickle

        from loraxs_search.search.hosts.host_config import host_config
        from loraxs_search.search.hosts.pool import HostPool

        space = load_space(str(tiny_space), overrides=SHORT)
        uri = resolve_uri(None)
        ensure_store(uri)
        info = new_study(space, fault.replace(" ", "-"), uri)
        for module in (simulated_host, faulty_baselines):
            cloudpickle.register_pickle_by_value(module)  # hosts cannot import this folder
        make = faulty_baselines.with_fault(fault, tmp_path / "died")
        pool = HostPool(replace(host_config([space]), make=make, pack_size=2), [space.search])
        try:
            return Driver(info, space, SilentView(), threading.Event()).run(pool)
        finally:
            pool.close()

    return search


@pytest.mark.long(part="search")
def test_studies_that_are_searched_together_have_their_own_baselines(
    ray_here: None, in_search_home: Path, tiny_space: Path
) -> None:
    other = tiny_space.with_name("other.yaml")
    text = tiny_space.read_text().replace("tiny-reviews", "tiny-positives")
    other.write_text(text.replace("metrics: [accuracy, f1]", "metrics: [f1, accuracy]"))
    results = launch_together([str(tiny_space), str(other)], overrides=SHORT)
    found = [StudyFolder.open(result.study).baselines() or () for result in results]
    assert [[y.name for y in baselines] for baselines in found] == [NAMES, NAMES]
    assert [y.failed for baselines in found for y in baselines] == [""] * 6
    accurate, positive = found
    assert positive[0].answer == 1, "the best constant for F1"
    assert positive[0].test_metrics["f1"] > 0.6
    assert accurate[1].validation_metrics == positive[1].validation_metrics, "the same rows"
    for result, baselines in zip(results, found, strict=True):
        folder = StudyFolder.open(result.study)
        client = connect(folder.info.tracking_uri)
        experiment = client.get_experiment_by_name(folder.info.task.name)
        of_search = f"tags.`loraxs.kind` = 'search' and tags.`loraxs.study` = '{folder.name}'"
        (run,) = client.search_runs([experiment.experiment_id], of_search)
        for baseline in baselines:
            key = f"baseline.{baseline.name}.test.accuracy"
            assert run.data.metrics[key] == pytest.approx(baseline.test_metrics["accuracy"])


@pytest.mark.long(part="search")  # tests/integration/test_search_work_items.py has it of any piece of work
def test_a_host_that_dies_while_it_measures_is_followed_by_one_that_does(
    search_with: Callable[..., SearchResult], tmp_path: Path
) -> None:
    result = search_with("dies once")
    assert (tmp_path / "died").exists()
    assert [trial.state for trial in result.trials] == [TrialState.COMPLETE] * 2
    baselines = StudyFolder.open(result.study).baselines() or ()
    assert [(y.name, y.failed) for y in baselines] == [("constant", "")]


@pytest.mark.long(part="search")  # tests/unit/search/driver/test_driver_baselines.py has the law
def test_baselines_that_cannot_be_measured_fail_no_search(search_with: Callable[..., SearchResult]) -> None:
    result = search_with("raises")
    assert len(result.candidates) == 2
    baselines = StudyFolder.open(result.study).baselines() or ()
    assert [(y.name, y.failed) for y in baselines] == [(name, "something nobody thought of") for name in NAMES]
