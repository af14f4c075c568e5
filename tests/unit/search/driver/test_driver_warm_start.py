"""Which params a search begins with: from studies of this machine, and from those that only the store knows."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port
from support.studies import TASK, study

from loraxs_search.errors import SpaceError, TrackingError
from loraxs_search.records import (
    AdapterSize,
    Hyperparameters,
    Identity,
    Origin,
    Scalar,
    SearchPlan,
    Task,
    TrialReport,
    TrialState,
    WarmStart,
    WarmTrial,
    WarmTrials,
)
from loraxs_search.search.driver.warm_start import warm_trials
from loraxs_search.search_space import Space, parse_space
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking import Tracker

BASE, OTHER = "a" * 64, "b" * 64
SIZE = AdapterSize(r_parameters=32, head_parameters=10, stored_bytes=400)
TEXT = """\
task: sst2
base_model: a/b
parameters:
  rank: {choice: [4, 8]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
search: {trials: 8}
"""
# Rank and learning rate of each trial with its score; the second is pruned, the third failed, the last one runs.
TRIALS: list[tuple[int, float, float, TrialState]] = [
    (4, 0.01, 0.7, TrialState.COMPLETE),
    (8, 0.05, 0.99, TrialState.PRUNED),
    (4, 0.09, 0.98, TrialState.FAIL),
    (8, 0.02, 0.9, TrialState.COMPLETE),
    (16, 0.03, 0.8, TrialState.COMPLETE),
    (4, 0.04, 0.97, TrialState.RUNNING),
]
Make = Callable[..., StudyFolder]


@pytest.fixture
def make(fresh_home: Path, store_uri: str) -> Make:
    """Record a study as a search does, in its folder and, if asked, in the store; it is finished unless said."""

    def recorded(
        name: str,
        trials: list[tuple[int, float, float, TrialState]] = TRIALS,
        *,
        base: str = BASE,
        task: Task = TASK,
        finished: bool = True,
        in_store: bool = False,
        plan: SearchPlan | None = None,
        params: Mapping[str, Scalar] = {},
        trained: Mapping[str, Any] = {},
    ) -> StudyFolder:
        folder = study(name, store_uri, task=task, search=plan)
        folder.write_identity(Identity(base, "data"))
        journal = folder.journal()
        tracker = Tracker(name, folder.path, store_uri, task.name) if in_store else None
        if tracker is not None:
            facts: dict[str, Scalar] = {"base_digest": base, "search.metric": "accuracy", "task.kind": task.kind}
            tracker.search_started("task: t\n", folder.info.search, params=facts)
        for number, (rank, rate, score, state) in enumerate(trials):
            trial_id, drawn = f"{number:05d}", {"rank": rank, "learning_rate": rate, **params}
            journal.trial_started(trial_id, drawn)
            report = TrialReport(trial_id, 40, {"accuracy": score}, 0.7, 1.0, 100, SIZE)
            journal.trial_reported(report)
            if state is not TrialState.RUNNING:
                journal.trial_ended(trial_id, state, "")
            if tracker is not None:
                made = Hyperparameters(("a", "b"), rate, rate, rank=rank, factor_rank=64, **trained)
                tracker.trial_started(trial_id, drawn, made)
                tracker.trial_reported(report)
                if state is not TrialState.RUNNING:
                    tracker.trial_finished(trial_id, state)
        if finished:
            folder.write_candidates([])
        if tracker is not None:
            if finished:
                tracker.search_finished("FINISHED")
            assert tracker.flush(60)
            tracker.close()
        return folder

    return recorded


@pytest.fixture
def space(tmp_path: Path) -> Callable[..., Space]:
    def parsed(*overrides: str) -> Space:
        return parse_space(TEXT, source="s.yaml", folder=tmp_path, overrides=overrides)

    return parsed


def origins(warm: WarmTrials) -> list[tuple[str, str]]:
    return [(trial.warm_start.study, trial.warm_start.trial_id) for trial in warm.trials]


# ---- named -----------------------------------------------------------------------------------------------------------
def test_the_best_three_of_each_come_in_turn_and_what_lies_outside_is_noted(
    make: Make, space: Callable[..., Space], store_uri: str
) -> None:
    make("first")
    make("second", [(4, 0.06, 0.5, TrialState.COMPLETE), (8, 0.02, 0.4, TrialState.COMPLETE)])
    warm = warm_trials(space("warm_start=[first, second]"), BASE, store_uri)
    # Of the first its best, its third (its second lies outside); of the second its best alone: its second came before.
    assert origins(warm) == [("first", "00003"), ("second", "00000"), ("first", "00000")]
    assert warm.trials[0] == WarmTrial({"rank": 8, "learning_rate": 0.02}, WarmStart("first", "00003"))
    assert warm.notes == ("trial 00004 of first is left out: rank is 16, and here one of 4, 8",)
    assert warm.studies == ("first", "second")
    few = warm_trials(space("warm_start=[first, second]", "search.trials=2"), BASE, store_uri)
    assert few.trials == warm.trials[:2]
    assert few.notes[-1].startswith("of 3 params of earlier studies the first 2 are tried")
    assert warm_trials(space(), BASE, store_uri) == WarmTrials()


def test_params_that_come_again_count_by_their_best_trial(
    make: Make, space: Callable[..., Space], store_uri: str
) -> None:
    rows = [(4, 0.01, 0.9), (4, 0.02, 0.8), (4, 0.03, 0.7), (4, 0.04, 0.6), (4, 0.01, 0.5)]
    make("first", [(*row, TrialState.COMPLETE) for row in rows])
    warm = warm_trials(space("warm_start=[first]"), BASE, store_uri)
    assert [trial for _, trial in origins(warm)] == ["00000", "00001", "00002"]


def test_all_faults_are_named_at_once_with_their_lines(
    make: Make, space: Callable[..., Space], store_uri: str, tmp_path: Path
) -> None:
    make("other", base=OTHER)
    (make("damaged").path / "journal.jsonl").write_text("no event\n")
    text = TEXT + "warm_start:\n  - other\n  - damaged\n  - othr\n"
    with pytest.raises(SpaceError) as caught:
        warm_trials(parse_space(text, source="s.yaml", folder=tmp_path), BASE, store_uri)
    heading, first, second, third = caught.value.message.splitlines()
    assert heading == "s.yaml has 3 faults:"
    law = f"must be a study of this base (weights {BASE[:12]}), but other is of {OTHER[:12]}: leave it out."
    assert first == f"s.yaml:8: warm_start[0]: {law}"
    assert second.startswith("s.yaml:9: warm_start[1]: must be a study that can be read, but: Every line of a journal")
    known = "this machine (other, damaged) or of its tracking server, but got 'othr'."
    assert third == f"s.yaml:10: warm_start[2]: did you mean other? It must be a study of {known}"


def test_a_study_without_a_score_is_nothing_to_start_from(
    make: Make, space: Callable[..., Space], store_uri: str
) -> None:
    make("empty", [TRIALS[2], TRIALS[5]])
    with pytest.raises(SpaceError, match=r"--set warm_start=\[empty\]: warm_start\[0\]: must be a study with a trial"):
        warm_trials(space("warm_start=[empty]"), BASE, store_uri)


# ---- from the store --------------------------------------------------------------------------------------------------
def test_a_study_of_another_machine_is_what_it_is_there(
    make: Make, space: Callable[..., Space], store_uri: str
) -> None:
    for name, keep in (("last", "last"), ("best", "best")):
        folder = make(name, in_store=True, plan=SearchPlan(keep=keep))
        here = warm_trials(space(f"warm_start=[{name}]"), BASE, store_uri)
        shutil.rmtree(folder.path)
        assert warm_trials(space(f"warm_start=[{name}]"), BASE, store_uri) == here
    assert len(here.trials) == 2
    with pytest.raises(SpaceError, match=f"of this base .* but last is of {BASE[:12]}"):
        warm_trials(space("warm_start=[last]"), OTHER, store_uri)


def test_no_store_is_made_to_look_for_a_study(fresh_home: Path, space: Callable[..., Space]) -> None:
    path = fresh_home / "none.db"
    with pytest.raises(SpaceError, match="must be a study of this machine or of its tracking server, but got 'gone'"):
        warm_trials(space("warm_start=[gone]"), BASE, f"sqlite:///{path}")
    assert not path.exists()


@pytest.mark.parametrize("wanted", ["[gone]", "auto"])
def test_a_server_that_is_away_is_named(fresh_home: Path, space: Callable[..., Space], wanted: str) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=uri):
        warm_trials(space(f"warm_start={wanted}"), BASE, uri)


# ---- auto ------------------------------------------------------------------------------------------------------------
def test_auto_finds_the_latest_finished_ones_of_base_and_kind_that_fit(
    make: Make, space: Callable[..., Space], store_uri: str
) -> None:
    def one(rate: float) -> list[tuple[int, float, float, TrialState]]:
        return [(4, rate, 0.5, TrialState.COMPLETE)]

    make("oldest", one(0.011))
    shutil.rmtree(make("elsewhere", one(0.012), in_store=True).path)
    make("both", one(0.013), in_store=True)
    make("latest", one(0.014))
    make("unfinished", one(0.015), finished=False)
    make("outside", [(64, 0.016, 0.5, TrialState.COMPLETE)])
    make("of-another-base", one(0.017), base=OTHER)
    make("of-another-kind", one(0.018), task=dataclasses.replace(TASK, kind="regression"))
    (make("damaged", one(0.019)).path / "journal.jsonl").write_text("no event\n")
    warm = warm_trials(space("warm_start=auto"), BASE, store_uri)
    assert (warm.studies, warm.notes) == (("latest", "both", "elsewhere"), ())
    assert [trial.params["learning_rate"] for trial in warm.trials] == [0.014, 0.013, 0.012]


def test_auto_that_finds_nothing_says_so(make: Make, space: Callable[..., Space], store_uri: str) -> None:
    make("of-another-base", base=OTHER)
    warm = warm_trials(space("warm_start=auto"), BASE, store_uri)
    assert warm.trials == ()
    (note,) = warm.notes
    assert note.startswith("no finished study of this base and task kind has params in this space")


# ---- what is kept ----------------------------------------------------------------------------------------------------
def test_a_folder_keeps_what_its_search_begins_with(make: Make, space: Callable[..., Space], store_uri: str) -> None:
    make("first")
    warm = warm_trials(space("warm_start=[first]"), BASE, store_uri)
    info: Any = dataclasses.replace(study("template").info, name="new")
    assert StudyFolder.create(info, TEXT, warm).warm_trials() == warm
    assert StudyFolder.open("new").warm_trials() == warm
    assert StudyFolder.open("first").warm_trials() == WarmTrials()
    journal = StudyFolder.open("new").journal()
    journal.trial_started("00000", warm.trials[0].params, Origin(warm.trials[0].warm_start))
    journal.trial_started("00001", {"rank": 4})
    again = StudyFolder.open("new").journal().records
    assert (again["00000"].warm_start, again["00001"].warm_start) == (WarmStart("first", "00003"), None)
