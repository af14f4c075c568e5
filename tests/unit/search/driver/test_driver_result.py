"""What a search has found, as Python and notebooks show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.searched_studies import Tried, confirm, searched

from loraxs_search.errors import SpaceError, StudyError
from loraxs_search.records import TrialState
from loraxs_search.search import SearchResult
from loraxs_search.search_space import parse_space
from loraxs_search.studies import StudyFolder

TRIALS = (
    Tried({"rank": 4, "learning_rate": 1e-3}, 0.7),
    Tried({"rank": 8, "learning_rate": 1e-5, "sigma": "<b>input</b>"}, 0.9),
    Tried({"rank": 16, "learning_rate": 1e-2}, 0.95, state=TrialState.PRUNED),
)
SPACE = "task: sst2\nbase_model: a/b\nparameters: {rank: 4, learning_rate: 1.0e-3}\n"


def result_of(folder: StudyFolder) -> SearchResult:
    records = tuple(folder.journal().records.values())
    return SearchResult(folder.name, records, tuple(folder.candidates() or ()), 12.3)


def test_the_best_is_the_finalists_trial_and_without_one_the_best_complete_trial(fresh_home: Path) -> None:
    folder = searched("s", TRIALS)
    best = result_of(folder).best
    assert best is not None
    assert (best.trial_id, best.score, best.finalist) == ("00001", 0.9, "")
    confirm(folder, "00000", [0.91], answers=[0, 1], labels=[0, 1])
    best = result_of(folder).best
    assert best is not None
    assert (best.trial_id, best.score, best.finalist, best.test_score) == ("00000", 0.7, "00000", 1.0)
    assert result_of(searched("none", TRIALS[2:], finished=False)).best is None


def test_a_table_has_a_row_for_each_trial_best_first(fresh_home: Path) -> None:
    table = result_of(searched("s", TRIALS)).to_pandas()
    assert list(table["trial_id"]) == ["00001", "00000", "00002"]
    assert list(table["state"]) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert list(table["params_rank"]) == [8, 4, 16]
    assert list(table["params_sigma"].isna()) == [False, True, True]
    assert list(table["score"]) == list(table["metrics_accuracy"]) == [0.9, 0.7, 0.95]
    assert table["test_score"].isna().all()
    empty = SearchResult(searched("empty", ()).name, (), (), 0.0).to_pandas()
    assert len(empty) == 0
    assert "stored_bytes" in empty


def test_it_is_short_in_a_shell_and_a_table_in_a_notebook(fresh_home: Path) -> None:
    result = result_of(searched("s", TRIALS))
    assert repr(result) == "<SearchResult s: 2 of 3 trials complete, 12 s>"
    page = result._repr_html_()
    assert "<table" in page
    assert "&lt;b&gt;input&lt;/b&gt;" in page
    assert "<b>input" not in page
    assert "and 2 more" in result_of(searched("many", TRIALS[:1] * 12))._repr_html_()


def test_a_study_that_is_gone_is_said_to_be(fresh_home: Path) -> None:
    with pytest.raises(StudyError, match="gone"):
        _ = SearchResult("gone", (), (), 1.0).best


# ---- overrides -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1.0e-05"), (3, "3"), (True, "true"), (None, "null"), ("no", "'no'"), ("a: b", "'a: b'"), ("sst2", "sst2")],
)
def test_a_mapping_of_overrides_is_what_the_command_line_has(value: object, text: str) -> None:
    from loraxs_search.search_space._edits import as_texts

    assert as_texts({"a.b": value}) == [f"a.b={text}"]


def test_values_of_a_mapping_arrive_as_they_are() -> None:
    given = {
        "parameters.learning_rate": {"log_uniform": [1e-5, 3e-5]},
        "parameters.rank": {"choice": (4, 8)},
        "search.trials": 3,
        "task": "cola",
    }
    space = parse_space(SPACE, source="space.yaml", folder=Path(), overrides=given)
    assert space.search.trials == 3
    assert list(space.parameters["rank"].possible or ()) == [4, 8]
    assert space.task.name == "cola"
    again = parse_space(space.text, source="space.yaml", folder=Path())
    assert (again.parameters, again.search) == (space.parameters, space.search)
    with pytest.raises(SpaceError, match=r"--set search\.trials=x: search\.trials"):
        parse_space(SPACE, source="space.yaml", folder=Path(), overrides={"search.trials": "x"})


def test_overrides_of_a_loaded_space_count_too() -> None:
    from loraxs_search.search_space import open_space

    space = parse_space(SPACE, source="space.yaml", folder=Path())
    assert open_space(space, {"search.trials": 3}).search.trials == 3
    assert open_space(space, ()) is space
