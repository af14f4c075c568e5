"""What a registry holds of a task: its champion, its versions and decisions, and how they are listed and named."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from mlflow import MlflowClient
from support.toys import rows
from support.tracked import Tracked

from loraxs_search.errors import IntegrityError, RegistryError, RegistryUnreadableError
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.records.search import PromotionRule, Refit, SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.registry import changes, store
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.store import ADAPTER, KIND, AdapterName, Registry

from .conftest import CONSTANT, TASK, candidate

RULE = replace(CONSTANT, confidence=0)  # numbers as they stand: no answers to test rows are at hand


def test_a_promoted_adapter_is_champion_with_all_that_is_known_of_it(registry, promote):
    refits = (Refit(1, {"accuracy": 0.79}), Refit(2, {"accuracy": 0.82}))
    decision, version = promote("t0", 320, refits=refits)
    found = registry.champion("movie-reviews")
    assert (found.version, version, found.aliases) == (1, 1, ("champion",))
    assert (found.candidate.refits, found.candidate.test_metrics["accuracy"]) == (refits, 0.8)
    assert registry.manifest(found.source).trial_id == "t0"
    assert replace(found.decision, version=1) == decision
    client = registry.client
    model, version = client.get_registered_model("movie-reviews"), client.get_model_version("movie-reviews", "1")
    assert (version.tags["test.accuracy"], version.tags["loraxs.study"]) == ("0.8", "s1")
    headline = "version 1, accuracy 0.8000 (0.8033 ± 0.0153 over seeds), 1,000 bytes"
    assert model.tags["loraxs.champion"] == headline
    for part in (headline, "- best of 1 on validation rows: t0", "loraxs-search pull movie-reviews:1"):
        assert part in version.description
    in_sight = (value for key, value in model.tags.items() if not key.startswith("mlflow."))
    assert not any("{" in value for value in (*in_sight, *version.tags.values())), "people see these"


def test_a_task_that_was_only_refused_has_history_whose_reasons_keep_their_end_and_no_champion(registry, promoter):
    promoter.promote(PromotionRule(max_bytes=10), TASK, [candidate(f"t{n:04d}") for n in range(200)], {})
    assert registry.champion("movie-reviews") is None
    (kept,) = registry.history("movie-reviews")
    assert kept.reasons[-1] == "no candidate may be promoted"
    assert "more reasons" in kept.reasons[0]
    assert registry.summaries() == registry.versions("movie-reviews") == [], "it has no version"
    with pytest.raises(RegistryError, match="has no champion", check=lambda it: "loraxs-search promote" in it.hint):
        registry.resolve("movie-reviews")


def test_a_changed_folder_or_another_ones_is_not_registered(registry, make_folder, promoter):
    folder = make_folder("t0")
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        promoter.promote(RULE, TASK, [candidate("t0")], {"t0": folder})
    with pytest.raises(IntegrityError, match="s1/t2"):
        promoter.promote(RULE, TASK, [candidate("t2")], {"t2": make_folder("t1")})
    assert registry.champion("movie-reviews") is None


def test_unknown_names_list_what_there_is_nearest_first(with_versions):
    registry = with_versions(1)
    with pytest.raises(RegistryError, match=r"`task`.*movie-reviews, .*'movie-review'"):
        registry.resolve("movie-review")
    for name in ("movie-reviews:7", "movie-reviews@canary"):
        with pytest.raises(RegistryError, match=r"movie-reviews:1.*@champion|@champion.*:1"):
            registry.resolve(name)


def test_asking_where_there_is_no_store_creates_none(fresh_home):
    uri = f"sqlite:///{fresh_home / 'mlflow.db'}"
    registry = Registry(uri)
    assert registry.champion("movie-reviews") is None
    assert registry.history("movie-reviews") == []
    assert registry.summaries() == []
    with pytest.raises(RegistryUnreadableError):
        registry.states({"t"})
    with pytest.raises(RegistryError, match="There is no task yet", check=lambda it: "loraxs-search launch" in it.hint):
        registry.resolve("movie-reviews")
    assert not sqlite_path(uri).exists()


def test_a_record_keeps_the_slices_that_lose_most(registry, promote):
    groups = np.array([f"{row % 150:03d}" for row in range(400)], object)
    promote("t0", 300)
    decision, _ = promote("t1", 400, answers=replace(rows(400), slices={"group": groups}))
    (_, kept) = registry.history("movie-reviews")
    assert len(decision.slices) == 150 > len(kept.slices) > 10
    losses = sorted((each.loss for each in decision.slices), reverse=True)
    assert sorted((each.loss for each in kept.slices), reverse=True) == losses[: len(kept.slices)]
    assert kept.reasons == decision.reasons


def test_two_promoters_at_once_leave_the_better_one(store_uri, make_folder):
    folders = {f"t{n}": make_folder(f"t{n}") for n in range(4)}

    def promote(number: int) -> None:
        own = candidate(f"t{number}", 0.80 + number / 100)
        Promoter(store_uri, "movie-reviews").promote(RULE, TASK, [own], folders)

    with ThreadPoolExecutor(4) as promoters:
        list(promoters.map(promote, (2, 0, 3, 1)))
    registry = Registry(store_uri)
    assert registry.champion("movie-reviews").candidate.trial_id == "t3"
    history = registry.history("movie-reviews")
    assert len(history) == 4
    assert sorted(made.number for past in history for made in past.comparisons) == [1, 2, 3, 4], "none is shared"
    gained = [past.winner_metric for past in history if past.promoted]
    assert gained == sorted(gained)


def test_one_that_stands_still_is_not_waited_for_long(with_versions, make_folder, store_uri, monkeypatch, promoter):
    with_versions(1)
    monkeypatch.setattr(changes, "WAIT_S", 0.1)
    folders = {"t1": make_folder("t1")}
    attempts = (
        lambda: promoter.promote(RULE, TASK, [candidate("t1", 0.9, test_fingerprint="data")], folders),
        lambda: promoter.rollback(to=1),
        lambda: promoter.remove(1, forced=True),
    )
    with next(sqlite_path(store_uri).parent.glob("*.promote.lock")).open("rb") as another:
        fcntl.flock(another, fcntl.LOCK_EX)
        for change in attempts:
            with pytest.raises(RegistryError, match=r"promote\.lock", check=lambda it: "fuser" in it.hint):
                change()
    assert attempts[0]()[1] == 2


def test_the_logged_model_of_the_search_is_the_one_registered(registry, store_uri, make_folder, tmp_path, promoter):
    tracker = Tracked("s1", tmp_path / "study", store_uri, "exp")
    tracker.search_started("task: {}\n", SearchPlan())
    tracker.trial_finished("t0", TrialState.COMPLETE)
    assert tracker.flush()
    folder = make_folder("t0")
    tracker.adapter_logged("t0", folder)
    assert tracker.close()
    promoter.promote(RULE, TASK, [candidate("t0")], {"t0": folder})
    client = registry.client
    version = client.get_model_version("movie-reviews", "1")
    run = client.get_run(version.run_id)
    assert run.data.tags["trial_id"] == "t0"
    model_id = run.data.tags["loraxs.model_id"]
    assert version.tags["loraxs.model_id"] == model_id
    assert '"name": "movie-reviews"' in client.get_logged_model(model_id).tags["mlflow.modelVersions"]


def test_damaged_answers_of_a_finalist_count_as_missing(registry, make_folder, tmp_path, promoter):
    """The refusal is recorded, and force passes without the damaged bytes."""
    path, found = tmp_path / "answers.safetensors", candidate("00000", 0.9)
    path.write_bytes(rows(360).to_bytes()[:-40])
    given = CONSTANT, TASK, [found], {"00000": make_folder("00000")}
    decision, version = promoter.promote(*given, predictions={"00000": path})
    assert version is None
    assert any(str(path) in reason for reason in decision.reasons)
    assert registry.history("movie-reviews")[-1].reasons == decision.reasons
    assert promoter.promote(*given, forced=True, predictions={"00000": path})[1] == 1
    assert registry.test_predictions(registry.champion("movie-reviews")) is None


def test_the_three_forms_and_no_others():
    for text, name in (
        ("movie-reviews", AdapterName("movie-reviews", "champion", None)),
        ("movie-reviews@champion-tiny", AdapterName("movie-reviews", "champion-tiny", None)),
        ("glue.sst_2:12", AdapterName("glue.sst_2", None, 12)),
    ):
        assert AdapterName.parse(text) == name
        assert AdapterName.parse(str(name)) == name
    for text in ("", "../x", "-x", "é", "x" * 201, "t:0", "t:x", "t:1:2", "t@", "t@a b", "t@latest", "t@v3", "t@x@y"):
        with pytest.raises(RegistryError, match="must"):
            AdapterName.parse(text)


# ---- lists -----------------------------------------------------------------------------------------------------------
def test_our_models_come_by_name_as_many_as_are_wanted_page_after_page(registry, monkeypatch):
    for number in range(25):
        registry.client.create_registered_model(f"task-{number:02d}", tags={KIND: ADAPTER})
    for number in range(5):
        registry.client.create_registered_model(f"a-model-of-someone-{number:02d}")
    asked, search = list[int](), MlflowClient.search_registered_models

    def ask(client, only, size, *rest):
        asked.append(size)
        return search(client, only, size, *rest)

    monkeypatch.setattr(MlflowClient, "search_registered_models", ask)
    for limit in (None, 1, 25):
        found = [summary.task for summary in registry.summaries(limit)]
        assert found == [f"task-{number:02d}" for number in range(25)][:limit]
    assert len(asked) == 3, "a few others among ours cost no second page"
    monkeypatch.setattr(store, "_MAX_PAGE", 10)
    assert len(registry.summaries()) == 25
    assert asked[3:] == [10] * 3


def test_a_state_differs_once_a_name_moves_or_a_task_is_made_anew(registry):
    client, tasks = registry.client, {f"t{n}" for n in range(10)}

    def make(task):
        client.create_registered_model(task, tags={KIND: ADAPTER})
        client.set_registered_model_alias(task, "champion", client.create_model_version(task, "file:///x").version)

    for task in sorted(tasks):
        make(task)
    client.create_model_version("t1", "file:///y")
    before = registry.states(tasks)
    assert before.keys() == tasks
    assert registry.states({"t1", "nobody"}) == {"t1": before["t1"]}  # few are asked one by one
    client.set_registered_model_alias("t1", "champion", "2")
    client.delete_registered_model("t2")
    make("t2")  # has version 1 again
    after = registry.states(tasks)
    assert {task for task in tasks if after[task] != before[task]} == {"t1", "t2"}


def test_the_list_has_every_task_with_its_champion(registry, promote, promoter):
    refits = (Refit(7, {"accuracy": 0.78}), Refit(8, failed="diverged"))
    promote("t0", 320, refits=refits)
    other = replace(TASK, name="another")
    promoter.promote(PromotionRule(max_bytes=1), other, [candidate("t9", task="another")], {})
    (found,) = registry.summaries()
    assert (found.task, found.version, found.metric, found.score) == ("movie-reviews", 1, "accuracy", 0.8)
    assert (found.stored_bytes, found.base_model) == (1000, "org/Tiny")
    assert found.mean == pytest.approx(0.79)
    assert found.spread == pytest.approx(0.0141421, rel=1e-4)
    assert found.promoted_at.startswith("20")
    assert found.aliases == {"champion": 1}
    promote("t1", 390)
    versions = [(it.version, it.candidate.trial_id, it.aliases) for it in registry.versions("movie-reviews")]
    assert versions == [(2, "t1", ("champion",)), (1, "t0", ())]
    registry.client.set_registered_model_alias("movie-reviews", "champion", "1")  # by someone else's hand
    (found,) = registry.summaries()
    assert (found.version, found.score) == (1, 0.8), "a line that is older than the alias is made anew"
