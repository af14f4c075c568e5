from __future__ import annotations

import dataclasses
import fcntl
import threading

import numpy as np
import pytest
from support.toys import rows
from support.tracked import Tracked

from loraxs_search.errors import IntegrityError, RegistryError
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.records.search import PromotionRule, Refit, SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.registry import changes
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.store import Registry
from loraxs_search.tracking.store import connect

RULE = PromotionRule(confidence=0, require="constant")  # numbers as they stand: no answers to test rows are at hand


def test_a_promoted_adapter_is_champion_with_all_that_is_known_of_it(registry, promote, store_uri):
    refits = (Refit(1, {"accuracy": 0.79}), Refit(2, {"accuracy": 0.82}))
    decision, version = promote("t0", 320, refits=refits)
    found = registry.champion("movie-reviews")
    assert (found.version, version, found.aliases) == (1, 1, ("champion",))
    assert (found.candidate.refits, found.candidate.test_metrics["accuracy"]) == (refits, 0.8)
    assert registry.manifest(found.source).trial_id == "t0"
    assert dataclasses.replace(found.decision, version=1) == decision
    client = connect(store_uri)
    model, version = client.get_registered_model("movie-reviews"), client.get_model_version("movie-reviews", "1")
    assert (version.tags["test.accuracy"], version.tags["loraxs.study"]) == ("0.8", "s1")
    headline = "version 1, accuracy 0.8000 (0.8033 ± 0.0153 over seeds), 1,000 bytes"
    assert model.tags["loraxs.champion"] == headline
    for part in (headline, "- best of 1 on validation rows: t0", "loraxs-search pull movie-reviews:1"):
        assert part in version.description
    in_sight = (value for key, value in model.tags.items() if not key.startswith("mlflow."))
    assert not any("{" in value for value in (*in_sight, *version.tags.values())), "people see these"


def test_a_task_that_was_only_refused_has_history_and_no_champion(registry, task, candidate, promoter):
    rule = PromotionRule(max_bytes=10)
    promoter.promote(rule, task, [candidate("t0")], {})
    assert registry.champion("movie-reviews") is None
    assert len(registry.history("movie-reviews")) == 1
    assert registry.summaries() == registry.versions("movie-reviews") == [], "it has no version"
    with pytest.raises(RegistryError, match="movie-reviews has no champion") as none:
        registry.resolve("movie-reviews")
    assert "loraxs-search promote" in str(none.value.hint)


def test_a_changed_folder_or_another_ones_is_not_registered(registry, task, candidate, make_folder, promoter):
    folder = make_folder("t0")
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        promoter.promote(RULE, task, [candidate("t0")], {"t0": folder})
    with pytest.raises(IntegrityError, match="s1/t2"):
        promoter.promote(RULE, task, [candidate("t2")], {"t2": make_folder("t1")})
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
    with pytest.raises(RegistryError, match="There is no task yet") as none:
        registry.resolve("movie-reviews")
    assert "loraxs-search launch" in str(none.value.hint)
    assert not sqlite_path(uri).exists()


def test_long_reasons_keep_their_end(registry, task, candidate, promoter):
    bad = [candidate(f"t{n:04d}", stored_bytes=10**9) for n in range(200)]
    promoter.promote(PromotionRule(max_bytes=10), task, bad, {})
    (kept,) = registry.history("movie-reviews")
    assert kept.reasons[-1] == "no candidate may be promoted"
    assert "more reasons" in kept.reasons[0]


def test_a_record_keeps_the_slices_that_lose_most(registry, promote):
    groups = np.array([f"{row % 150:03d}" for row in range(400)], object)
    promote("t0", 300)
    decision, _ = promote("t1", 400, answers=dataclasses.replace(rows(400), slices={"group": groups}))
    (_, kept) = registry.history("movie-reviews")
    assert len(decision.slices) == 150 > len(kept.slices) > 10
    losses = sorted((each.loss for each in decision.slices), reverse=True)
    assert sorted((each.loss for each in kept.slices), reverse=True) == losses[: len(kept.slices)]
    assert kept.reasons == decision.reasons


def test_two_promoters_at_once_leave_the_better_one(store_uri, task, candidate, make_folder):
    folders = {f"t{n}": make_folder(f"t{n}") for n in range(4)}
    faults: list[Exception] = []

    def promote(number: int) -> None:
        try:
            own = candidate(f"t{number}", 0.80 + number / 100)
            Promoter(store_uri, "movie-reviews").promote(RULE, task, [own], folders)
        except Exception as error:  # noqa: BLE001 (a thread's error is shown by the test)
            faults.append(error)

    threads = [threading.Thread(target=promote, args=(number,)) for number in (2, 0, 3, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    registry = Registry(store_uri)
    assert registry.champion("movie-reviews").candidate.trial_id == "t3"
    history = registry.history("movie-reviews")
    assert len(history) == 4
    assert sorted(made.number for past in history for made in past.comparisons) == [1, 2, 3, 4], "none is shared"
    gained = [past.winner_metric for past in history if past.promoted]
    assert gained == sorted(gained)


def test_a_promoter_that_stands_still_is_not_waited_for_without_end(
    with_versions, task, candidate, make_folder, store_uri, monkeypatch, promoter
):
    with_versions(1)
    monkeypatch.setattr(changes, "WAIT_S", 0.1)
    folders = {"t1": make_folder("t1")}
    attempts = (
        lambda: promoter.promote(RULE, task, [candidate("t1", 0.9, test_fingerprint="data")], folders),
        lambda: promoter.rollback(to=1),
        lambda: promoter.remove(1, forced=True),
    )
    with next(sqlite_path(store_uri).parent.glob("*.promote.lock")).open("rb") as another:
        fcntl.flock(another, fcntl.LOCK_EX)
        for change in attempts:
            with pytest.raises(RegistryError, match=r"promote\.lock") as held:
                change()
            assert "fuser" in held.value.hint
    assert attempts[0]()[1] == 2


def test_the_logged_model_of_the_search_is_the_one_registered(
    registry, store_uri, task, candidate, make_folder, tmp_path, promoter
):
    tracker = Tracked("s1", tmp_path / "study", store_uri, "exp")
    tracker.search_started("task: {}\n", SearchPlan())
    tracker.trial_finished("t0", TrialState.COMPLETE)
    assert tracker.flush()
    folder = make_folder("t0")
    tracker.adapter_logged("t0", folder)
    assert tracker.close()
    promoter.promote(RULE, task, [candidate("t0")], {"t0": folder})
    client = connect(store_uri)
    version = client.get_model_version("movie-reviews", "1")
    run = client.get_run(version.run_id)
    assert run.data.tags["trial_id"] == "t0"
    model_id = run.data.tags["loraxs.model_id"]
    assert version.tags["loraxs.model_id"] == model_id
    assert '"name": "movie-reviews"' in client.get_logged_model(model_id).tags["mlflow.modelVersions"]


def test_damaged_answers_of_a_finalist_count_as_missing(registry, candidate, task, make_folder, tmp_path, promoter):
    """The refusal is recorded, and force passes without the damaged bytes."""
    path, found = tmp_path / "answers.safetensors", candidate("00000", 0.9)
    path.write_bytes(rows(360).to_bytes()[:-40])
    given = PromotionRule(require="constant"), task, [found], {"00000": make_folder("00000")}
    decision, version = promoter.promote(*given, predictions={"00000": path})
    assert version is None
    assert any(str(path) in reason for reason in decision.reasons)
    assert registry.history(task.registered_name)[-1].reasons == decision.reasons
    assert promoter.promote(*given, forced=True, predictions={"00000": path})[1] == 1
    assert registry.test_predictions(registry.champion(task.registered_name)) is None
