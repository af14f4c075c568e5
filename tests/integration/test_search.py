"""Whole searches on Ray, Optuna and MLflow in this process, on real rows and a tiny base; and the actors below them."""

from __future__ import annotations

import os
import re
import signal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from support.shell import Said
from support.studies import state, study

import loraxs_search
from loraxs_search.assets import PROBE, START
from loraxs_search.cli._main import run
from loraxs_search.cli.launch import show_results
from loraxs_search.cli.live_text import LinesView
from loraxs_search.errors import StudyError, TaskDataError, TrackingError
from loraxs_search.home import home
from loraxs_search.log.events import Phase, ShownEvent, TrialContinued, TrialReported, TrialStarted
from loraxs_search.log.study_log import SearchView
from loraxs_search.manifest import read_manifest, verify
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.registry.finalist import choose
from loraxs_search.search.cluster.connection import NAMESPACE, start_named
from loraxs_search.search.driver import session
from loraxs_search.search.driver.launch import launch, launch_together, resume
from loraxs_search.search.driver.work_items import WorkItem, map_over_hosts
from loraxs_search.search.hosts import pool
from loraxs_search.search.hosts.answers import kill
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.steering import extend_study
from loraxs_search.studies.folder import StudyFolder, list_studies

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


def test_a_search_ends_with_candidates_that_hold_and_the_promoted_one_predicts(
    ray_here, in_search_home, tiny_space, agree
):
    overrides = {
        "promotion.seeds": 2,
        "task.slices": ["sentiment"],
        "promotion.guards": {"slice_loss": 0.05},
        "parameters.learning_rate": {"log_uniform": [2.0e-2, 1.0e-1]},
    }
    result = loraxs_search.launch(str(tiny_space), name="whole", overrides=overrides, progress=True)
    agree("whole", 6)
    again = resume("whole")
    assert (again.trials, again.candidates) == (result.trials, result.candidates), "it has finished"
    states = [trial.state for trial in result.trials]
    assert TrialState.FAIL not in states
    assert (recipes := min(2, states.count(TrialState.COMPLETE)))
    assert sorted(c.trial_id.count(".") for c in result.candidates) == [0] * recipes + [1] * 2 * recipes
    (finalist,) = (c for c in result.candidates if c.test_metrics)
    folder = StudyFolder.open("whole")
    assert choose(folder.info.promotion, folder.info.task, result.candidates)[0] == finalist
    linear_probe = folder.assets()[PROBE]
    assert folder.read_asset(linear_probe)
    rows = ScoredRows.from_bytes(folder.confirmed.rows_path(finalist.trial_id).read_bytes())
    right = rows.predictions == rows.labels
    assert finalist.test_metrics["accuracy"] == pytest.approx(float(right.mean()))
    assert rows.slices["sentiment"].tolist() == [folder.info.task.labels[label] for label in rows.labels]
    shares = [float(right[rows.labels == label].mean()) for label in (0, 1)]
    for candidate in result.candidates:
        manifest = verify(folder.adapter_path(candidate.trial_id))
        hyper, evidence = manifest.hyperparameters, (manifest.test_metrics, manifest.validation_metrics)
        assert (hyper.head_init, hyper.linear_probe) == ("probe", linear_probe)
        assert (*evidence, manifest.refits) == (candidate.test_metrics, candidate.validation_metrics, candidate.refits)
        assert len({refit.seed for refit in candidate.refits} | {hyper.seed}) == 3
        assert len(manifest.factors) == len(hyper.target_modules)
        assert manifest.size.r_parameters == hyper.rank**2 * len(hyper.target_modules)
        scores = [each.score for each in manifest.slices]
        assert scores == (pytest.approx(shares) if candidate == finalist else [])
    # ---- promoted; in a fresh process, and merged, its logits are in tests/numerics/test_adapter_equivalence.py ----
    assert loraxs_search.promote("whole", force=True).promoted
    path = loraxs_search.pull("tiny-reviews")
    assert path == loraxs_search.pull("tiny-reviews")
    probe, model = verify(path).probe, loraxs_search.load_adapter("tiny-reviews")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(probe.input_ids)).logits
    head = [value.abs().max() for name, value in model.named_parameters() if "modules_to_save" in name]
    largest = float(max([torch.tensor(1.0), *head]))  # a probe of a tiny base has large weights
    assert (logits / largest).tolist() == pytest.approx(np.array(probe.logits) / largest, abs=1e-5)
    (prediction,) = loraxs_search.predict("tiny-reviews", ["a moving, funny film"])
    assert prediction.label in ("negative", "positive")
    assert not loraxs_search.promote("whole").promoted
    assert [d.promoted for d in loraxs_search.history("tiny-reviews")] == [True, False]


@pytest.mark.long(part="search")  # tests/unit/search/driver/test_driver_launch.py has the laws
def test_trials_start_from_the_version_that_the_name_meant_at_launch(search):
    fixed = ("parameters.rank=4", "parameters.target_modules=all-linear", "promotion.seeds=0", "search.trials=2")
    fixed += ("task.name=started-reviews",)
    search("start-first", *fixed)
    loraxs_search.promote("start-first", force=True)
    changes = ("start_from=started-reviews", "parameters.rank={choice: [4, 6]}", "search.trials=3")
    result = search("start-second", *fixed, *changes)
    folder = StudyFolder.open("start-second")
    start = folder.info.start_from
    assert start is not None
    assert (start.name, start.with_head) == ("started-reviews:1", True)
    assert set(folder.assets()) == {START, PROBE}
    for path in filter(lambda path: path.exists(), (folder.adapter_path(it.trial_id) for it in result.trials)):
        manifest = read_manifest(path)
        assert manifest.start_from == {"name": start.name, "digest": start.digest}
        assert manifest.hyperparameters.start_from == folder.assets()[START]
        assert "It started from `started-reviews:1`" in (path / "README.md").read_text()


# ---- how searches end ------------------------------------------------------------------------------------------------
def test_what_ends_a_search_before_it_has_a_study_is_told_as_it_would_be_here(search, tiny_space):
    message = r"^Task tiny-reviews has 2 faults:\nDid you mean sentence\? `columns.text` must be one of: "
    with pytest.raises(TaskDataError, match=message):  # only a host sees it
        search("no-study", "task.columns.text=sentense")
    with pytest.raises(TrackingError, match="must be reachable"):
        launch(str(tiny_space), name="no-study", tracking_uri="http://127.0.0.1:9")
    assert not StudyFolder.exists("no-study")


def test_a_study_that_fails_leaves_the_others_to_their_end(ray_here, in_search_home, tiny_space, agree):
    broken = tiny_space.with_name("broken.yaml")
    text = tiny_space.read_text().replace("tiny-reviews", "tiny-broken")
    broken.write_text(text.replace("label: label", "label: nowhere"))
    before, short = set(list_studies()), ("search.trials=2", "search.max_steps=4", "promotion.seeds=0")
    with pytest.raises(TaskDataError, match="nowhere"):
        launch_together([str(tiny_space), str(broken)], overrides=short)
    (finished,) = set(list_studies()) - before
    agree(finished, 2)


def test_a_search_whose_trials_all_fail_stops_names_the_cause_and_is_gone_on_with(simulated, agree):
    with pytest.raises(StudyError, match=r"5 of the latest trials failed for the same reason: .* finite") as failed:
        simulated("doomed", "parameters.learning_rate=1.0e+38", "search.trials=8", "search.concurrent=1")
    assert "loraxs-search resume doomed" in (failed.value.hint or "")
    before = StudyFolder.open("doomed").journal().records
    assert len(before) < 8
    with pytest.raises(StudyError, match=r"found nothing: each of its 8 trials failed, 8 with: .* finite") as failed:
        resume("doomed")  # fewer are left than it takes to tell
    assert "loraxs-search extend doomed --trials N" in (failed.value.hint or "")
    agree("doomed", 8)
    assert StudyFolder.open("doomed").journal().records.items() >= before.items()
    assert StudyFolder.open("doomed").candidates() is None


def test_trials_that_the_time_budget_has_cut_continue_first_once_there_is_more(
    simulated, tiny_space, agree, monkeypatch, capsys
):
    seen = list[ShownEvent]()
    monkeypatch.setattr(pool, "_SAY_EVERY_S", -1.0)
    monkeypatch.setattr(pool, "_SHORT_WORK", 0.0)

    class OverWithTheReports(TimeBudget):
        @property
        def left_s(self) -> float | None:
            return 0.0 if sum(isinstance(event, TrialReported) for event in seen) >= 2 else 3600.0

    plan = ("search.trials=4", "search.time_budget=1h", "search.max_steps=100", "search.report_every=10")
    with monkeypatch.context() as patch:
        patch.setattr(session, "TimeBudget", OverWithTheReports)
        view: Any = SimpleNamespace(happened=seen.append)
        cut = launch(str(tiny_space), name="cut", overrides=(*plan, "search.scheduler=none"), view=view)
    phases = [it.text for it in seen if isinstance(it, Phase) and it.text.startswith("decomposing")]
    assert phases == [f"decomposing the base's weights: {done} of {len(phases) + 1} parts" for done in range(1, 9)]
    assert {trial.state for trial in cut.trials} == {TrialState.PRUNED}
    assert 0 < (num_cut := len(cut.trials)) < 4
    show_results([cut], as_json=False)
    said = capsys.readouterr().err
    assert re.search(r"One takes about \d+ min", said)
    assert "extend cut --time" in said
    extend_study("cut", time="1h")
    result = resume("cut")
    agree("cut", 4)
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETE}
    assert [trial.reports[-1].step for trial in result.trials] == [100] * 4
    events = StudyFolder.open("cut").journal().history()
    kinds = [type(event) for event in events if isinstance(event, (TrialContinued, TrialStarted))]
    assert kinds == [TrialStarted] * num_cut + [TrialContinued] * num_cut + [TrialStarted] * (4 - num_cut)
    assert any(candidate.test_metrics for candidate in result.candidates)


def test_ctrl_c_ends_a_search_in_order(simulated, tiny_space, monkeypatch, capfd):
    happened, presses = LinesView.happened, iter([signal.SIGINT])

    def and_then_pressed(view: LinesView, event: ShownEvent) -> None:
        happened(view, event)
        if isinstance(event, TrialReported) and (number := next(presses, None)):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(LinesView, "happened", and_then_pressed)
    code = run(["launch", str(tiny_space), "--name", "stopped", "--set", "search.max_steps=200"])
    talk = ("stopping; Ctrl-C again ends at once", "Study 'stopped' was interrupted", "`loraxs-search resume stopped`")
    assert Said(code, *capfd.readouterr()).is_error(130, *talk)
    assert run(["status"]) == 0
    assert re.search("^stopped +tiny-reviews +interrupted", capfd.readouterr().out, re.MULTILINE)


# ---- actors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "title", ["TrialAdvancer", pytest.param("HostDirectory", marks=pytest.mark.long(part="search"))]
)
def test_trials_share_one_process_and_lose_no_report_when_it_or_the_owner_of_hosts_is_killed(
    title, simulated, tiny_space, agree, descendants, monkeypatch
):
    monkeypatch.setattr(pool, "start_named", pool.start_named.__wrapped__)  # not one that other searches share
    idle = set(descendants(os.getpid(), "ray::IDLE", 0))  # these take new work
    others = set(descendants(os.getpid(), "ray::")) - idle
    at_once, every, steps = 12, 10, 60
    processes, found, reports = list[int](), list[set[int]](), list[ShownEvent]()

    class Killer(SearchView):
        """Looks at Ray's processes at two reports, and kills one at the first."""

        def happened(self, event: ShownEvent) -> None:
            reports.extend([event] if isinstance(event, TrialReported) else [])
            if isinstance(event, TrialReported) and len(reports) in (at_once // 2, 5 * at_once):
                processes.extend(set(descendants(os.getpid(), "ray::")) - others)
                found.append(set(descendants(os.getpid(), title)) - others)
                if len(found) == 1:
                    os.kill(*found[0], signal.SIGKILL)

    plan = {"trials": at_once, "pack_size": at_once, "max_steps": steps, "report_every": every, "scheduler": "none"}
    overrides = [f"search.{name}={value}" for name, value in plan.items()]
    result = launch(str(tiny_space), name=title, overrides=[*overrides, "promotion.seeds=0"], view=Killer())
    agree(title, at_once)
    first, second = found
    assert (len(first), len(second)) == (1, 1)
    assert first != second
    assert len(processes) / 2 < at_once, "the host, directory, snapshot store, and a few for short tasks"
    for trial in result.trials:
        assert [report.step for report in trial.reports] == list(range(every, steps + 1, every))


def test_a_snapshot_store_that_is_lost_is_started_anew_and_no_trial_sees_it(ray_here):
    def pid() -> Any:
        return ray.get(snapshot_store.__ray_call__.remote(lambda _: os.getpid()))

    folder = study("kept-on")
    name, snapshot_store = start_named(pool.SnapshotStore, "kept-on", str(home()))
    try:
        ray.get(snapshot_store.write_snapshot.remote("00000", state("00000", "first")))
        os.kill(first := pid(), signal.SIGKILL)
        ray.get(snapshot_store.write_snapshot.remote("00000", state("00000", "second")))
        assert ray.get(ray.get_actor(name, NAMESPACE).read_snapshot.remote("00000")) == state("00000", "second")
        assert folder.snapshots.read("00000") == state("00000", "second")
        assert pid() != first
    finally:
        kill(snapshot_store)


@ray.remote(num_cpus=0)
class Worker:
    """Answers with its own name; `fatal` ends its process at the first question."""

    def __init__(self, name: str, fatal: bool = False) -> None:
        self._name, self._fatal = name, fatal

    def work(self, number: int) -> tuple[int, str]:
        if self._fatal:
            os._exit(1)
        if number < 0:
            raise TaskDataError("a number must not be negative")
        return number, self._name


def test_work_is_done_once_on_every_host_also_where_one_dies_or_cannot(ray_here):
    """A host that dies is replaced, and what one cannot do is the item's own fault."""
    done, errors = list[tuple[int, str]](), list[Exception]()

    def item(number: int) -> WorkItem:
        try:
            for _ in range(2):
                answer = yield lambda host: host.work.remote(number)  # type: ignore[attr-defined]
                assert answer[0] == number
                done.append(answer)
        except TaskDataError as error:
            errors.append(error)

    def hosts(*actors: Any) -> Any:
        return SimpleNamespace(hosts=lambda: actors, host=lambda lost: Worker.remote("another"))

    def stop() -> None:
        raise KeyboardInterrupt

    two = hosts(Worker.remote("a", fatal=True), Worker.remote("b"))
    map_over_hosts(two, [item(number) for number in (-1, *range(12))], lambda: None, at_once=2)
    assert sorted(number for number, _ in done) == sorted([*range(12)] * 2)
    assert {name for _, name in done} == {"another", "b"}
    assert len(errors) == 1
    with pytest.raises(KeyboardInterrupt):
        map_over_hosts(hosts(Worker.remote("a")), [item(1)], stop)
    map_over_hosts(hosts(), [], stop)
