"""Names of runs, the view of a study's trials, and the data that runs name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tracked import Tracked

from loraxs_search.records.search import SearchPlan, StudyDescription
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tracking.run_texts import dataset_input, run_name, write_view
from loraxs_search.tracking.store import connect


@pytest.mark.parametrize(
    ("trial_id", "params", "name"),
    [
        (
            "00012",
            {"scale": 0.5, "learning_rate": 0.002, "target_modules": "attention", "rank": 16},
            "#12 r16 attention lr 2e-3 scale 0.5",
        ),
        ("00000", {"method": "ia3", "learning_rate": 0.0171}, "#0 ia3 lr 1.7e-2"),
        ("00003", {}, "#3"),
        ("clone-3", {"rank": 4}, "clone-3 r4"),
        ("00001", {"target_modules": "a" * 60}, f"#1 {'a' * 23}…"),
    ],
)
def test_a_name_has_number_rank_modules_and_rate_first(trial_id, params, name):
    assert run_name(trial_id, params) == name


@given(
    st.dictionaries(
        st.sampled_from(("rank", "method", "target_modules", "learning_rate", "d_initial", "head", "x" * 60)),
        st.one_of(st.integers(), st.floats(), st.text(), st.booleans()),
    )
)
def test_whatever_the_params_a_name_is_short(params):
    name = run_name("00042", params)
    assert name.startswith("#42")
    assert len(name) <= 48


TASK = Task(
    "exp",
    "sequence-classification",
    DataSource(data_files={"train": "/home/me/reviews.csv"}),
    "text",
    "label",
    "accuracy",
    "maximize",
    ("accuracy",),
    labels=("bad", "good"),
)
FACTS = StudyDescription(TASK, "org/base", ("rank", "learning_rate", "dropout"), {"train": 800, "test": 200}, "f" * 64)


@pytest.fixture
def record(store_uri, tmp_path):
    """Record a study that starts, in a folder of its own, and return the experiment and the study's id."""

    def run(study: str = "s1", facts: StudyDescription | None = FACTS):
        with Tracked(study, tmp_path / study, store_uri, "exp") as tracker:
            tracker.search_started("task: {}\n", SearchPlan(), facts=facts)
            tracker.trial_started("00007", {"rank": 4, "learning_rate": 0.002})
        return connect(store_uri).get_experiment_by_name("exp"), (tmp_path / study / "tracking.id").read_text()

    return run


def views(experiment) -> dict[str, dict]:
    """The shared views of an experiment by key."""
    prefix = "mlflow.sharedViewState."
    return {key.removeprefix(prefix): json.loads(v) for key, v in experiment.tags.items() if key.startswith(prefix)}


def test_a_view_shows_the_trials_of_its_study_best_first(record, store_uri):
    experiment, study_id = record()
    view = views(experiment)[f"loraxs-{study_id}"]
    assert view["name"] == "s1"
    state = json.loads(view["state"])
    (parent,) = connect(store_uri).search_runs([experiment.experiment_id], "tags.`loraxs.kind` = 'search'")
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`accuracy`", False)
    for column in ("metrics.`accuracy`", "params.`dropout`", "metrics.`stored_bytes`", "tags.`loraxs.reason`"):
        assert column in state["selectedColumns"]
    assert len(connect(store_uri).search_runs([experiment.experiment_id], state["searchFilter"])) == 1


def test_recording_a_study_again_changes_no_view(record, tmp_path):
    before, _ = record()
    (tmp_path / "s1" / "mlflow.offset").unlink()
    after, _ = record()
    assert after.tags == before.tags


def test_a_search_that_is_not_described_has_none(record):
    assert views(record(facts=None)[0]) == {}


@pytest.fixture
def write(store_uri):
    """Add a view to the experiment `many`, which has two views of users; returns all views by key."""
    client = connect(store_uri)
    experiment_id = client.create_experiment("many")
    for key in THEIRS:
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", "[1]")

    def write(study_id, ranked_by=("accuracy", "maximize"), parameters=()):
        shown = {"ranked_by": ranked_by, "parameters": parameters}
        write_view(client, experiment_id, study_id, study="s", run_id="run", **shown)
        return views(client.get_experiment(experiment_id))

    return write


THEIRS = {"0a1b", "loraxs-odd"}


def test_a_loss_is_sorted_upwards_and_a_view_fits_a_tag_however_many_parameters(write):
    view = write("s", ("loss", "minimize"), [f"parameter_{i}" for i in range(1000)])["loraxs-s"]
    assert json.loads(view["state"])["orderByAsc"]


def test_of_many_views_the_oldest_of_ours_go_and_those_of_people_stay(write):
    for number in range(33):
        found = write(f"s{number:02d}")
    assert found.keys() == THEIRS | {f"loraxs-s{n:02d}" for n in range(3, 33)}


def test_each_run_names_its_data(record, store_uri):
    experiment, _ = record()
    runs = connect(store_uri).search_runs([experiment.experiment_id])
    assert len(runs) == 2
    for run in runs:
        (named,) = run.inputs.dataset_inputs
        assert (named.dataset.name, named.dataset.digest) == ("exp", "f" * 16)
        assert json.loads(named.dataset.profile)["num_rows"] == 1000
        assert json.loads(named.dataset.source) == {"uri": "reviews.csv"}


def test_data_of_the_hub_name_their_set_and_revision():
    facts = StudyDescription(
        Task(**{**vars(TASK), "source": DataSource(hub="glue", config="sst2", revision="abc")}), "b"
    )
    dataset = dataset_input(facts).dataset
    assert (dataset.name, dataset.source_type) == ("glue/sst2", "hugging_face")
    assert json.loads(dataset.source) == {"path": "glue", "config_name": "sst2", "revision": "abc"}
