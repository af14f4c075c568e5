"""Whole searches on Ray, Optuna and MLflow in this process, on real rows and a tiny base."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.spaces import REVIEWS

import loraxs_search
from loraxs_search.errors import BaseModelError, StudyError
from loraxs_search.records import TrialRecord, TrialState
from loraxs_search.registry import ScoredRows, choose, verify
from loraxs_search.search import SearchInterruptedError, SearchResult, SilentView, TrialsFailError, launch, resume
from loraxs_search.search.hosts import study_actors
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking.store import connect

REVIEWS_TEST = Path(__file__).parents[2] / "search_spaces" / "data" / "movie_reviews" / "test.jsonl.gz"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def ray_here(search_home: Path) -> Iterator[None]:
    """One Ray for the module: `launch` uses a connection that is there already."""
    import ray

    from loraxs_search.search.cluster.connection import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(search_home))
        with connected(None):
            yield
    assert not ray.is_initialized()


@pytest.fixture
def run(ray_here: None, in_search_home: Path, tiny_space: Path) -> Callable[..., SearchResult]:
    def search(name: str, *overrides: str, stop: threading.Event | None = None) -> SearchResult:
        return launch(str(tiny_space), name=name, overrides=overrides, stop=stop)

    return search


def test_a_search_ends_with_records_that_agree_and_candidates_that_hold(
    run: Callable[..., SearchResult], agree: Callable[..., object]
) -> None:
    result = run("whole", "promotion.seeds=2")
    agree("whole", 6)
    states = [trial.state for trial in result.trials]
    assert TrialState.COMPLETE in states
    assert TrialState.FAIL not in states
    recipes = min(2, states.count(TrialState.COMPLETE))
    assert sorted(c.trial_id.count(".") for c in result.candidates) == [0] * recipes + [1] * 2 * recipes
    assert sum(bool(c.test_metrics) for c in result.candidates) == 1, "the finalist alone"
    folder = StudyFolder.open("whole")
    for candidate in result.candidates:
        manifest = verify(folder.adapter_path(candidate.trial_id))
        assert manifest.test_metrics == candidate.test_metrics
        assert manifest.validation_metrics == candidate.validation_metrics
        assert manifest.refits == candidate.refits
        assert len({refit.seed for refit in candidate.refits} | {manifest.hyperparameters.seed}) == 3
        assert len(manifest.factors) == len(manifest.hyperparameters.target_modules)
        assert manifest.size.r_parameters == sum(
            manifest.hyperparameters.rank**2 for _ in manifest.hyperparameters.target_modules
        )
    finalist = next(c for c in result.candidates if c.test_metrics)
    assert choose(folder.info.promotion, folder.info.task, result.candidates).finalist == finalist
    rows = ScoredRows.from_bytes(folder.confirmations().rows_path(finalist.trial_id).read_bytes())
    assert finalist.test_metrics["accuracy"] == pytest.approx(float((rows.predictions == rows.labels).mean()))


def test_rows_that_splits_share_are_logged_and_recorded(
    run: Callable[..., SearchResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    lines = [f"film {i},{i % 2}\n" for i in range(60)]
    train.write_text("sentence,label\n" + "".join(lines))
    test.write_text("sentence,label\n" + "".join(lines[:30]) + "Film  31,1\n" + "another,0\n")
    files = (f"task.data.data_files.train={train}", f"task.data.data_files.test={test}")
    run("shared", "search.trials=1", "search.max_steps=2", "promotion.seeds=0", *files)
    (warning,) = [record.getMessage() for record in caplog.records if "rows" in record.getMessage()]
    assert warning.startswith("task tiny-reviews: 31 of 32 test rows are also in train (30 letter for letter, ")
    (parent,) = search_runs("shared")
    counts = {name: value for name, value in parent.data.params.items() if "_rows_in_" in name}
    assert (counts.pop("test_rows_in_train"), counts.pop("test_rows_in_train_folded")) == ("30", "31")
    assert set(counts.values()) == {"0"}


def search_runs(study: str) -> list[Any]:
    """Return the runs of a study's search, of which there must be one."""
    info = StudyFolder.open(study).info
    client = connect(info.tracking_uri)
    experiment = client.get_experiment_by_name(info.task.name)
    where = f"tags.`loraxs.study` = '{study}' and tags.`loraxs.kind` = 'search'"
    return list(client.search_runs([experiment.experiment_id], where))


def test_a_finished_study_resumes_to_the_same_result(run: Callable[..., SearchResult]) -> None:
    first = run("again", "search.trials=2")
    second = resume("again")
    assert second.trials == first.trials
    assert second.candidates == first.candidates


def test_the_same_seed_gives_the_same_search(run: Callable[..., SearchResult]) -> None:
    plan = ("search.trials=4", "search.pack_size=1")  # of trials at once, who reports first decides
    first, second = run("seed-a", *plan), run("seed-b", *plan)
    shown = [
        [(t.trial_id, t.params, t.state, [r.metrics for r in t.reports]) for t in r.trials] for r in (first, second)
    ]
    assert shown[0] == shown[1]
    other = run("seed-c", *plan, "search.seed=1")
    assert [t.params for t in other.trials] != [t.params for t in first.trials]


def test_a_packed_search_trains_the_same_trials(run: Callable[..., SearchResult], agree: Callable[..., object]) -> None:
    plan = ("search.trials=4", "search.scheduler=none")
    lone, packed = run("lone", *plan, "search.pack_size=1"), run("packed", *plan, "search.pack_size=3")
    agree("packed", 4)
    for a, b in zip(lone.trials, sorted(packed.trials, key=lambda t: t.trial_id), strict=True):
        assert (a.trial_id, a.params, a.state) == (b.trial_id, b.params, b.state)
        assert [r.metrics["loss"] for r in b.reports] == pytest.approx([r.metrics["loss"] for r in a.reports], rel=1e-4)


def test_trials_that_diverge_fail_with_a_reason_and_the_others_go_on(
    run: Callable[..., SearchResult], agree: Callable[..., object]
) -> None:
    result = run(
        "diverge",
        "parameters.learning_rate={choice: [1.0e-2, 1.0e+38]}",
        "search.trials=5",
        "search.scheduler=none",
    )
    agree("diverge", 5)
    by_rate = {trial.params["learning_rate"]: trial for trial in result.trials}
    assert by_rate[1e38].state is TrialState.FAIL
    assert "finite" in by_rate[1e38].reason
    assert {t.state for t in result.trials if t.params["learning_rate"] == 1e-2} == {TrialState.COMPLETE}


def test_a_search_whose_trials_all_fail_stops_names_the_cause_and_is_gone_on_with(
    run: Callable[..., SearchResult], agree: Callable[..., object]
) -> None:
    with pytest.raises(
        TrialsFailError, match=r"5 of the latest trials failed for the same reason: .* finite"
    ) as failed:
        run("doomed", "parameters.learning_rate=1.0e+38", "search.trials=8", "search.pack_size=1")
    assert "loraxs-search resume doomed" in (failed.value.hint or "")
    assert StudyFolder.open("doomed").candidates() is None
    before = StudyFolder.open("doomed").journal().records
    assert len(before) < 8
    result = resume("doomed")  # where fewer are left than it takes to tell, the search ends as it would have
    agree("doomed", 8)
    assert {record.trial_id: record for record in result.trials}.items() >= before.items()
    assert result.candidates == ()


def test_the_time_budget_ends_a_search_with_trials_pruned_not_lost(
    run: Callable[..., SearchResult], agree: Callable[..., object]
) -> None:
    result = run(
        "late", "search.trials=500", "search.time_budget=12s", "search.max_steps=2000", "search.report_every=10"
    )
    agree("late", len(result.trials))
    assert len(result.trials) < 500
    assert "time budget" in result.notice


def test_the_time_budget_is_that_of_all_drivers_together(
    run: Callable[..., SearchResult], agree: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that searched for an hour and was killed has left nothing of half an hour, the next day or whenever."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(SearchInterruptedError):
        run("spent", "search.trials=500", "search.time_budget=30m", stop=stop)
    journal = StudyFolder.open("spent").journal()
    with monkeypatch.context() as patch:
        patch.setattr("loraxs_search.studies.journal.time.time", lambda: 3600.0)
        journal.driver_started(since=0.0)
    assert journal.spent_s > 3600
    result = resume("spent")
    assert result.trials == ()
    assert result.notice == "the time budget of 1800 s is used up"
    assert 3600 < result.wall_s < 3600 + 300


FRESH = """
import json, sys, torch, loraxs_search
from loraxs_search.registry import ScoredRows, choose, verify
folder = loraxs_search.pull(sys.argv[1])
probe = verify(folder).probe
model = loraxs_search.load_adapter(sys.argv[1])
expected = torch.tensor(probe.logits)
def distance(model):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(probe.input_ids)).logits
    return float((logits - expected).abs().max())
print(json.dumps([distance(model), distance(model.merge_and_unload())]))
"""


def test_a_pulled_adapter_gives_the_trials_own_logits_in_a_fresh_process_merged_too(
    run: Callable[..., SearchResult],
) -> None:
    run("logits", "search.trials=2", "task.name=logits-reviews", "parameters.learning_rate=0.05")
    assert loraxs_search.promote("logits", force=True).promoted
    command = [sys.executable, "-c", FRESH, "logits-reviews"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unmerged, merged = json.loads(out)
    assert unmerged <= 1e-5
    assert merged <= 1e-5


@pytest.mark.long
def test_refits_in_a_pack_are_those_of_lone_hosts(run: Callable[..., SearchResult]) -> None:
    plan = ("search.trials=2", "search.scheduler=none")
    lone, packed = run("refit-lone", *plan, "search.pack_size=1"), run("refit-packed", *plan, "search.pack_size=3")
    found = {candidate.trial_id: candidate.refits for candidate in packed.candidates}
    assert found.keys() == {candidate.trial_id for candidate in lone.candidates}
    for candidate in lone.candidates:
        for one, other in zip(candidate.refits, found[candidate.trial_id], strict=True):
            assert one.seed == other.seed
            assert other.validation_metrics["loss"] == pytest.approx(one.validation_metrics["loss"], rel=1e-4)


def test_no_refits_are_made_where_none_are_wanted(run: Callable[..., SearchResult]) -> None:
    none = run("no-refits", "search.trials=1", "promotion.seeds=0")
    assert [(c.trial_id, c.refits) for c in none.candidates] == [("00000", ())]


@pytest.mark.long
def test_a_second_study_meets_the_champion_on_its_own_rows(run: Callable[..., SearchResult], tiny_base: Path) -> None:
    plan = ("search.trials=1", "task.name=met-reviews", "promotion.seeds=1", "parameters.learning_rate=0.05")
    run("met-first", *plan)
    assert loraxs_search.promote("met-first", force=True).aliases == ("champion", f"champion-{tiny_base.name}")
    run("met-second", *plan, "search.seed=1")
    decision = loraxs_search.promote("met-second")
    assert decision.p_value is not None
    run("met-elsewhere", *plan, "search.seed=2", f"task.data.data_files.test={REVIEWS_TEST}")
    anew = loraxs_search.promote("met-elsewhere")
    assert "has no answers to these test rows: it was scored anew" in anew.reasons[1]
    assert anew.looks[0].number == 1
    assert anew.p_value is not None
    (summary,) = [s for s in loraxs_search.ls() if s.task == "met-reviews"]
    (champion,) = [v for v in loraxs_search.show("met-reviews") if "champion" in v.aliases]
    assert summary.version == champion.version
    assert summary.score == champion.candidate.test_metrics["accuracy"]


def test_a_promoted_adapter_predicts(run: Callable[..., SearchResult]) -> None:
    run("served", "search.trials=2", "task.name=served-reviews")
    decision = loraxs_search.promote("served", force=True)
    assert decision.promoted
    path = loraxs_search.pull("served-reviews")
    assert path == loraxs_search.pull("served-reviews")
    (prediction,) = loraxs_search.predict("served-reviews", ["a moving, funny film"])
    assert prediction.label in ("negative", "positive")
    again = loraxs_search.promote("served")
    assert not again.promoted
    assert [d.promoted for d in loraxs_search.history("served-reviews")] == [True, False]


def test_long_work_before_the_first_trial_says_how_far_it_is(
    ray_here: None, in_search_home: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []

    class Watching(SilentView):
        def phase(self, text: str) -> None:
            phases.append(text)

    monkeypatch.setattr(study_actors, "_SAY_EVERY_S", -1.0)
    monkeypatch.setattr(study_actors, "_SHORT_WORK", 0.0)
    short = ("search.trials=1", "search.max_steps=2", "parameters.basis={choice: [top, bottom]}")
    launch(str(tiny_space), name="phases", overrides=short, view=Watching())
    decomposing = [text for text in phases if text.startswith("decomposing")]
    assert decomposing == [f"decomposing the base's weights: {done} of 6 parts" for done in range(1, 6)]


def test_warm_hosts_serve_the_next_search_and_end_in_time(run: Callable[..., SearchResult], tiny_space: Path) -> None:
    import ray

    from loraxs_search.search.cluster.connection import NAMESPACE

    short = ("search.trials=1", "search.max_steps=2", "search.report_every=2")
    run("first-of-two", *short, "search.keep_hosts=8s")
    actors = ray.util.list_named_actors(all_namespaces=True)
    (name,) = (actor["name"] for actor in actors if actor["name"].startswith("directory-"))
    hosts = ray.get(ray.get_actor(name, NAMESPACE).hosts.remote())
    assert len(hosts) == 1
    run("second-of-two", *short, "search.keep_hosts=1s")
    directory = ray.get_actor(name, NAMESPACE)
    assert ray.get(directory.hosts.remote()) == hosts
    deadline = time.monotonic() + 30
    with pytest.raises(ray.exceptions.RayActorError):
        while time.monotonic() < deadline:
            ray.get(directory.hosts.remote())
            time.sleep(0.5)


# ---- identity --------------------------------------------------------------------------------------------------------
@pytest.fixture
def own_files(tiny_space: Path, tiny_base: Path, tmp_path: Path) -> dict[str, Path]:
    """The tiny space on a base and rows that a test may change."""
    base, rows = tmp_path / "own-base", tmp_path / "train.jsonl"
    shutil.copytree(tiny_base, base)
    rows.write_bytes(gzip.decompress((REVIEWS / "validation.jsonl.gz").read_bytes()))
    text = tiny_space.read_text().replace(str(tiny_base), str(base))
    tiny_space.write_text(text.replace(str(REVIEWS / "validation.jsonl.gz"), str(rows)))
    return {"rows": rows, "weights": base / "model.safetensors"}


def change(what: str, file: Path) -> None:
    """Swap the labels, or halve one weight."""
    if what == "rows":
        text = file.read_text().replace('"label": 0', '"label": #').replace('"label": 1', '"label": 0')
        file.write_text(text.replace('"label": #', '"label": 1'))
        return
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights["encoder.layer.0.output.dense.weight"] = weights["encoder.layer.0.output.dense.weight"] / 2
    save_file(weights, file, {"format": "pt"})


SHORT = ("search.trials=1", "search.max_steps=2", "search.report_every=2", "promotion.seeds=0")


@pytest.mark.parametrize("pack_size", [1, 2])
def test_a_warm_host_trains_on_the_rows_and_weights_of_now(
    run: Callable[..., SearchResult], own_files: dict[str, Path], pack_size: int
) -> None:
    def search(name: str) -> tuple[str, str, float]:
        result = run(f"{name}-{pack_size}", *SHORT, f"search.pack_size={pack_size}", "search.keep_hosts=20s")
        (candidate,) = result.candidates
        return candidate.data_fingerprint, candidate.base_digest, result.trials[0].reports[-1].metrics["loss"]

    found = [search("first")]
    for what in ("rows", "weights"):
        change(what, own_files[what])
        found.append(search(what))
    fingerprints, digests, losses = zip(*found, strict=True)
    assert fingerprints[0] != fingerprints[1] == fingerprints[2]
    assert digests[0] == digests[1] != digests[2]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("what", ["rows", "weights"])
def test_a_study_whose_files_were_changed_is_not_gone_on_with_until_they_are_back(
    ray_here: None, in_search_home: Path, tiny_space: Path, own_files: dict[str, Path], what: str
) -> None:
    stop = threading.Event()

    class Stopping(SilentView):
        def trial_changed(self, record: TrialRecord) -> None:
            if record.reports:
                stop.set()

    name, file = f"changed-{what}", own_files[what]
    with pytest.raises(SearchInterruptedError):
        launch(str(tiny_space), name=name, view=Stopping(), stop=stop, overrides=("search.scheduler=none",))
    begun = StudyFolder.open(name).identity()
    assert begun is not None
    before = file.read_bytes()
    change(what, file)
    which, value = ("data fingerprint", begun.data_fingerprint)
    if what == "weights":
        which, value = ("weight digest", begun.base_digest)
    with pytest.raises(StudyError, match=rf"must go on with .* {which} [0-9a-f]{{16}}, not {value[:16]}\."):
        resume(name)
    file.write_bytes(before)
    (StudyFolder.open(name).path / "identity.json").unlink()  # as an older version began it
    assert len(resume(name).trials) == 6
    assert StudyFolder.open(name).identity() == begun


# ---- bases whose rows cannot share a pass ----------------------------------------------------------------------------
def test_a_base_whose_rows_depend_on_their_padding_is_searched_by_turns_or_refused(
    run: Callable[..., SearchResult], tiny_space: Path, tiny_base: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoTokenizer, ConvBertConfig, ConvBertModel

    tokenizer, base = AutoTokenizer.from_pretrained(tiny_base), tmp_path / "convolved"
    size = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ConvBertConfig(vocab_size=len(tokenizer), intermediate_size=48, initializer_range=0.1, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ConvBertModel(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    tiny_space.write_text(tiny_space.read_text().replace(str(tiny_base), str(base)))
    plan = (*SHORT, "search.trials=3", "search.scheduler=none")
    lone, chosen = run("turns-one", *plan, "search.pack_size=1"), run("turns-auto", *plan, "search.pack_size=auto")
    for a, b in zip(lone.trials, sorted(chosen.trials, key=lambda trial: trial.trial_id), strict=True):
        assert (b.state, b.params) == (TrialState.COMPLETE, a.params)
        assert b.reports[-1].metrics["loss"] == pytest.approx(a.reports[-1].metrics["loss"], rel=1e-4)
    with pytest.raises(BaseModelError, match="of this one what a row gives depends on its padding") as refused:
        run("turns-refused", *plan, "search.pack_size=2")
    assert "`search.pack_size` to 1 or auto" in (refused.value.hint or "")
