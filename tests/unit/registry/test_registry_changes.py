"""Champions of a task: who meets whom, how one is scored anew, how minds are changed, and what comparisons count."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.toys import rows

from loraxs_search.errors import BaseModelError, ForeignVersionError, RegistryError, TrackingError
from loraxs_search.records.search import Baseline, Decision, Refit
from loraxs_search.registry.changes import SHOWN, Promoter
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.registry.promotion import Scored
from loraxs_search.registry.store import DECISIONS, DECISIONS_EXPERIMENT

from .conftest import CONSTANT, TASK, killed_at


def scored_anew(rows, test="data", metrics=None):
    """What scores a champion anew: it has these answers to other test rows."""
    known = metrics or {"accuracy": float((rows.predictions == rows.labels).mean())}
    fields = {"test_metrics": known, "data_fingerprint": test, "test_fingerprint": test}
    return lambda champion: Scored(replace(champion.candidate, **fields), rows)


# ---- scored anew -----------------------------------------------------------------------------------------------------
def test_a_champion_that_cannot_be_scored_anew_stays(promote):
    promote("t0", 300, data="old data")

    def rescore(champion):
        raise BaseModelError("its base is not here.")

    decision, _ = promote("t1", 390, rescore=rescore)
    assert not decision.promoted
    assert "could not be scored anew: its base is not here." in decision.reasons[1]
    assert "not comparable" in decision.reasons[-1]
    forced, version = promote("t2", 390, rescore=rescore, forced=True)
    assert (forced.promoted, forced.forced, version) == (True, True, 2)


def written(right: int, *, earlier: bool = False) -> ScoredRows:
    """Texts as today's rules read them, or as others have."""
    labels = [f"{row}" for row in range(400)]
    read = ScoredRows.of([label if row < right else "" for row, label in enumerate(labels)], labels)
    return replace(read, scoring=0) if earlier else read


def test_a_champion_whose_texts_were_read_by_other_rules_is_scored_anew(promote):
    anew = scored_anew(written(300))
    assert promote("t0", 0, answers=written(200, earlier=True))[0].promoted
    assert promote("t1", 0, answers=written(250, earlier=True), rescore=pytest.fail)[0].promoted, "both are read alike"
    unknown = promote("t2", 0, answers=written(390))[0]
    assert "read by other rules and could not be scored anew" in unknown.reasons[1]
    assert "not comparable" in unknown.reasons[-1]
    assert unknown.comparisons == ()
    compared = promote("t3", 0, answers=written(390), rescore=anew)[0]
    assert "read by other rules: it was scored anew" in compared.reasons[1]
    assert compared.champion_metric == 0.75
    assert promote("t4", 0, answers=written(399), rescore=pytest.fail)[0].promoted


def test_answers_that_were_exchanged_or_removed_are_made_anew_or_stop_nothing_but_their_task(registry, promote):
    promote("t0", 320)
    kept = Path(registry.champion("movie-reviews").source) / "evidence" / "test_rows.safetensors"
    kept.write_bytes(rows(100).to_bytes())
    refused, _ = promote("t1", 330)
    assert not refused.promoted
    assert "has no whole answers to these test rows" in refused.reasons[1]
    assert registry.history("movie-reviews")[-1] == refused
    assert promote("t1", 330, rescore=scored_anew(rows(320)))[0].promoted
    (Path(registry.champion("movie-reviews").source) / "evidence" / "test_rows.safetensors").unlink()
    assert promote("t2", 200, forced=True)[0].forced


# ---- changing your mind ----------------------------------------------------------------------------------------------
def test_rolling_back_goes_to_the_champion_before_and_is_recorded(registry, with_versions, promote, promoter):
    with_versions(3)
    decision = promoter.rollback()
    assert (decision.action, decision.version, decision.winner, decision.champion) == ("rollback", 2, "t1", "s1/t2")
    assert registry.summaries()[0].version == 2
    assert promoter.rollback().version == 1  # not to the one it came from
    with pytest.raises(RegistryError, match="champion", check=lambda it: "--to" in it.hint):
        promoter.rollback()
    assert promoter.rollback(to=3).version == 3
    assert promoter.rollback().version == 1
    assert [past.action for past in registry.history("movie-reviews")] == ["promote"] * 3 + ["rollback"] * 4
    for to, message in ((1, "already is the champion"), (9, "movie-reviews:3")):
        with pytest.raises(RegistryError, match=message):
            promoter.rollback(to=to)


def test_a_champion_is_removed_by_force_only(registry, with_versions, promote, promoter):
    with_versions(2)
    with pytest.raises(RegistryError, match="is champion", check=lambda it: "rollback" in it.hint):
        promoter.remove(2)
    assert promoter.remove(1).action == "remove"
    with pytest.raises(RegistryError):
        registry.resolve("movie-reviews:1")
    assert promoter.remove(2, forced=True).forced
    assert registry.champion("movie-reviews") is None
    assert registry.summaries()[0].version is None
    assert registry.client.get_registered_model("movie-reviews").tags[SHOWN] == "none"
    assert [past.action for past in registry.history("movie-reviews")] == ["promote", "promote", "remove", "remove"]
    with pytest.raises(RegistryError, match="no champion"):
        promoter.rollback()


def killed_before_write(number, act):
    """Do something and be killed before the write of this number; returns whether it came to its end before."""
    left = iter(range(number - 1))

    def killing(original):
        def write(*arguments, **named):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in dir(MlflowClient):
            if name.startswith(("set_", "delete_")):
                patch.setattr(MlflowClient, name, killing(getattr(MlflowClient, name)))
        try:
            act()
        except KeyboardInterrupt:
            return False
    return True


def test_a_rollback_goes_back_by_one_wherever_it_is_killed(registry, with_versions, promoter):
    with_versions(3)
    for count, number in enumerate((2, 3, 5, 30), 1):
        is_whole = killed_before_write(number, promoter.rollback)
        if not is_whole:
            assert promoter.rollback().version == 2
        assert registry.champion("movie-reviews").version == 2
        rollbacks = [one for one in registry.history("movie-reviews") if one.action == "rollback"]
        assert [one.version for one in rollbacks[1::2]] == [3] * (count - 1)
        assert [one.version for one in rollbacks[::2]] == [2] * count
        if not is_whole:
            promoter.rollback(to=3)
    assert is_whole


def test_a_removal_is_recorded_once_wherever_it_is_killed(registry, promote, promoter):
    promote("t0", 320)
    for number in (2, 3, 4, 8, 30):
        promote(f"t{number}", 321 + number, rule=replace(CONSTANT, confidence=0))
        version = registry.champion("movie-reviews").version
        remove = functools.partial(promoter.remove, version, forced=True)
        is_whole = killed_before_write(number, remove)
        if not is_whole:
            assert remove().version == version
        removals = [one.version for one in registry.history("movie-reviews") if one.action == "remove"]
        assert removals.count(version) == 1
        assert version not in [one.version for one in registry.versions("movie-reviews")]
        assert registry.champion("movie-reviews") is None
        promoter.rollback(to=1)
    assert is_whole


def test_a_promotion_finishes_a_rollback_that_was_killed_before_it_decides(registry, with_versions, promote, promoter):
    with_versions(2)
    killed_before_write(2, promoter.rollback)
    promote("t1", 340)
    assert registry.history("movie-reviews")[-2].action == "rollback"
    assert registry.champion("movie-reviews").version == 2, "it beats the first version again"


def test_a_promotion_that_was_cut_off_is_recorded_by_the_next_change(registry, promote, promoter):
    with killed_at("set_registered_model_tag", SHOWN):
        promote("t0", 300)
    cut_off = registry.history("movie-reviews")
    refused, _ = promote("t1", 290)
    assert registry.client.get_registered_model("movie-reviews").tags[SHOWN].startswith("version 1,")
    promote("t2", 380)
    assert registry.history("movie-reviews")[:2] == [*cut_off, refused]
    assert promoter.rollback().version == 1
    assert [past.version for past in registry.history("movie-reviews")] == [1, None, 2, 1]


def test_a_killed_rollback_is_dropped_where_the_champion_was_changed_by_hand(registry, with_versions, caplog, promoter):
    with_versions(3)
    killed_before_write(2, promoter.rollback)
    registry.client.set_registered_model_alias("movie-reviews", "champion", "1")
    assert promoter.rollback(to=3).version == 3
    assert [one.version for one in registry.history("movie-reviews") if one.action == "rollback"] == [3]
    assert "cut short" in caplog.text


def test_a_killed_change_touches_no_version_of_a_task_that_was_made_anew(registry, with_versions, promoter, caplog):
    with_versions(2)
    client, name = registry.client, "movie-reviews"
    model, first = client.get_registered_model(name), client.get_model_version(name, "1")
    known = first.tags["loraxs.digest"]

    def make_anew(digest):
        client.delete_registered_model(name)
        tags = {tag.replace(known[:32], digest[:32]): value for tag, value in model.tags.items()}
        client.create_registered_model(name, tags)
        client.create_model_version(name, first.source, tags={**first.tags, "loraxs.digest": digest})

    assert not killed_before_write(2, promoter.rollback)
    make_anew("e" * 64)
    client.set_registered_model_alias(name, "champion", "1")
    # It first drops the rollback, and is killed once it has begun itself.
    assert not killed_before_write(3, functools.partial(promoter.remove, 1, forced=True))
    assert "cut short" in caplog.text
    assert not [one for one in registry.history(name) if one.action == "rollback"]
    make_anew("f" * 64)
    assert promoter.rollback(to=1).version == 1
    assert registry.champion(name).digest == "f" * 64


def test_a_decision_that_cannot_be_read_is_left_out_with_a_warning(registry, with_versions, caplog, promoter):
    with_versions(2)
    client = registry.client
    (run,) = client.search_runs([client.get_experiment_by_name("loraxs-search decisions").experiment_id])
    client.set_tag(run.info.run_id, f"{DECISIONS}n000000001.broken", "{")
    assert [past.version for past in registry.history("movie-reviews")] == [1, 2]
    assert "cannot be read" in caplog.text
    assert promoter.rollback().version == 1


def test_records_fit_a_tag_however_many_refits_there_are(registry, promote):
    refits = tuple(Refit(2**31 + n, {"accuracy": 0.8 + n / 7e5, "f1": 0.7 + n / 7e5, "loss": 0.3}) for n in range(24))
    wordy = (Baseline("constant", test_metrics={"accuracy": 0.5}), Baseline("other", answer="so " * 4000))
    seen = tuple(f"s/t{number}" for number in range(400))
    promoted, _ = promote("t0", 320, refits=refits, seen=seen, baselines=wordy)
    assert promoted.promoted
    tags = registry.client.get_registered_model("movie-reviews").tags
    assert max(map(len, tags.values())) <= 5000
    kept = registry.champion("movie-reviews").candidate
    assert [refit.seed for refit in kept.refits] == [refit.seed for refit in refits]
    assert kept.test_metrics == {"accuracy": 0.8, "f1": pytest.approx(0.79)}
    assert str(kept.baselines[1].answer).startswith("so so")
    assert kept.refits[3].validation_metrics["accuracy"] == pytest.approx(0.8 + 3 / 7e5, abs=1e-6)


def test_a_champion_that_others_registered_hides_no_task_and_is_rolled_back(registry, with_versions, promote, promoter):
    with_versions(2)
    client = registry.client
    made = client.create_model_version("movie-reviews", source="/elsewhere")
    client.set_registered_model_alias("movie-reviews", "champion", made.version)
    (summary,) = registry.summaries()
    assert (summary.task, summary.version, summary.aliases["champion"]) == ("movie-reviews", None, 3)
    with pytest.raises(ForeignVersionError, match="Version 3", check=lambda it: "rollback" in it.hint):
        promote("t2", 380)
    assert promoter.remove(1).version == 1
    assert promoter.rollback(to=2).version == 2
    assert registry.champion("movie-reviews").version == 2
    assert registry.summaries()[0].version == 2


def test_of_two_versions_with_one_folder_one_can_be_removed(registry, with_versions, promoter):
    """A slow server has registered what MLflow's client sent twice."""
    with_versions(1)
    client = registry.client
    first = client.get_model_version("movie-reviews", "1")
    client.create_model_version("movie-reviews", source=first.source, tags=first.tags)
    assert promoter.remove(2, forced=True).action == "remove"
    assert registry.champion("movie-reviews").version == 1
    promoter.remove(1, forced=True)
    assert not [tag for tag in client.get_registered_model("movie-reviews").tags if first.tags["loraxs.digest"] in tag]


# ---- comparisons on the same test rows -------------------------------------------------------------------------------
@pytest.fixture
def decide(promote):
    """Decide on one finalist with its answers to 400 rows; again with the same name, on the same study."""
    return lambda *finalist, **other: promote(*finalist, **other)[0]


def numbers(decision: Decision) -> list[int]:
    return [made.number for made in decision.comparisons]


def test_each_comparison_on_the_same_rows_is_held_to_more(decide):
    assert numbers(decide("t0", 300)) == [1]
    assert numbers(decide("t1", 302)) == [2]
    third = decide("t2", 307)  # p = 1/128: enough for a first look, not for a third
    assert (numbers(third), third.promoted) == ([3], False)
    assert third.comparisons[0].confidence == pytest.approx(1 - 0.05 / 12)
    assert "comparison 3 on these rows" in third.reasons[-1]


def test_deciding_again_on_the_same_study_is_the_same_look(registry, decide):
    decide("t0", 300)
    first = decide("t1", 303)
    for again in (decide("t1", 303), decide("t1", 303)):
        assert (again.promoted, again.comparisons, again.reasons) == (first.promoted, first.comparisons, first.reasons)
    assert numbers(decide("t2", 304)) == [3]
    forced = decide("t1", 303, forced=True)
    assert (forced.promoted, forced.forced, numbers(forced)) == (True, True, [2])
    assert numbers(decide("t1", 303)) == [], "the champion is compared with nobody"
    assert numbers(decide("t2", 304)) == [4], "with another champion it is another comparison"
    assert len(registry.history("movie-reviews")) == 8


def test_decisions_whose_experiment_was_deleted_are_no_empty_history(registry, decide):
    decide("t0", 180)
    experiment = registry.client.get_experiment_by_name(DECISIONS_EXPERIMENT).experiment_id
    registry.client.delete_experiment(experiment)
    for ask in (lambda: decide("t1", 340), lambda: registry.history("movie-reviews")):
        with pytest.raises(TrackingError, match="deleted"):
            ask()
    assert registry.champion("movie-reviews") is None
    registry.client.restore_experiment(experiment)
    assert numbers(decide("t1", 340)) == [2]


def test_new_test_rows_start_the_count_anew(decide):
    decide("t0", 300)
    decide("t1", 302)
    decision = decide("t2", 330, data="new rows", rescore=scored_anew(rows(280), "new rows"))
    assert (numbers(decision), decision.promoted) == ([1], True)
    assert numbers(decide("t3", 302)) == [], "and the champion, whose answers to the old rows are not here, stays"


def test_who_has_lost_the_lease_writes_no_decision_and_moves_no_champion(registry, decide, monkeypatch, promoter):
    decide("t0", 320)

    def lost() -> None:
        raise RegistryError("another holds it")

    with monkeypatch.context() as patch:
        patch.setattr(Promoter, "locked", lambda _: contextlib.nullcontext(lost))
        for right in (321, 399):  # refused, and promoted
            with pytest.raises(RegistryError):
                decide(f"t{right}", right)
        with pytest.raises(RegistryError):
            promoter.promote(CONSTANT, TASK, [], {})
    assert [decision.number for decision in registry.history("movie-reviews")] == [1]
    assert registry.champion("movie-reviews").version == 1


# ---- what tolerance counts from --------------------------------------------------------------------------------------
SMALLER = replace(CONSTANT, margin=0.05)


def test_a_reference_without_its_answers_decides_nothing_unless_it_is_scored_anew(registry, decide):
    decide("t0", 340, rule=SMALLER)
    decide("t1", 338, rule=SMALLER, stored_bytes=900)
    for version in registry.versions("movie-reviews"):
        (Path(version.source) / "evidence" / "test_rows.safetensors").unlink()
    refused = decide("t2", 338, rule=SMALLER, stored_bytes=800)
    assert "not comparable" in refused.reasons[-1]
    assert "has no whole answers" in refused.reasons[1]

    def rescore(version):
        right = {"t0": 340, "t1": 338}[version.candidate.trial_id]
        return scored_anew(rows(right))(version)

    assert decide("t2", 338, rule=SMALLER, stored_bytes=800, rescore=rescore).promoted
    assert decide("t3", 200, rule=SMALLER, forced=True).forced


def test_on_new_rows_the_champion_as_it_is_scored_there_is_the_reference_also_later(decide):
    decide("t0", 390, rule=SMALLER, data="old rows")
    first = decide("t1", 337, rule=SMALLER, stored_bytes=900, rescore=scored_anew(rows(340)))
    (made,) = first.comparisons
    assert (first.promoted, made.reference_version, made.reference_metric) == (True, 1, 0.85)
    second = decide("t2", 334, rule=SMALLER, stored_bytes=800)
    assert (second.promoted, second.comparisons[0].reference_version) == (False, 1)


def test_a_finalist_that_could_not_be_compared_counts_once(registry, decide):
    decide("t0", 300, rule=replace(CONSTANT, confidence=0))
    champion = registry.champion("movie-reviews")
    other = {"test_metrics": {"accuracy": 0.75}, "validation_metrics": {"accuracy": 0.75, "loss": 0.75}}
    refused = decide("t1", 302, rule=replace(CONSTANT, metric="loss"), **other)
    assert (refused.comparisons, len(refused.seen)) == ((), 1)
    assert numbers(decide("t1", 302, rule=CONSTANT)) == [2]
    assert numbers(decide("t2", 303)) == [3]
    assert registry.champion("movie-reviews") == champion
