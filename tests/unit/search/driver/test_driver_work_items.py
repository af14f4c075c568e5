"""Items of work over hosts that only answer, what their answers add up to, and baselines, which are measured once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayTaskError
from support.studies import do_all, study
from support.toys import TASK
from support.word_pairs import WordPairs

from loraxs_search.errors import (
    ClusterError,
    HomeError,
    LoraxsError,
    SearchInterruptedError,
    TaskDataError,
    TrialDivergedError,
)
from loraxs_search.records.adapter import Answers
from loraxs_search.records.search import BASE_MODEL_ROWS, Baseline, PromotionRule
from loraxs_search.records.task import Identity, Task
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.search.driver import work_items
from loraxs_search.search.driver.result import lacks_baseline
from loraxs_search.search.driver.work_items import BaseModelBaseline, StudyBaselines, WorkItem
from loraxs_search.search.hosts.answers import HOST_LOST
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.record_files import Confirmations
from loraxs_search.tasks.kinds import KINDS


def test_answers_of_several_hosts_add_up(tmp_path):
    confirmed = Confirmations(tmp_path)
    confirmed.write_answers("00001.2", range(2, 3), Answers((1,), (1,), 0.5))
    confirmed.write_answers("00001.2", range(2), Answers((0, 1), (0, 0), 1.0))
    confirmed.write_answers("00001", range(9), Answers((0,) * 9, (1,) * 9, 9.0))
    found = confirmed.answers("00001.2")
    assert list(found) == [range(2), range(2, 3)]
    metrics, rows = work_items.joined(list(found.values()), replace(TASK, metrics=("accuracy",)))
    assert metrics == {"accuracy": pytest.approx(2 / 3), "loss": 0.5}
    assert (rows.predictions.tolist(), rows.labels.tolist()) == ([0, 1, 1], [0, 0, 1])
    groups = [("a", "b"), ("a",)]
    parts = [replace(part, slices={"group": own}) for part, own in zip(found.values(), groups, strict=True)]
    task = replace(TASK, metrics=("accuracy",), metric="accuracy", slices=("group",))
    assert work_items.joined(parts, task)[1].slices["group"].tolist() == ["a", "b", "a"]
    metrics, _ = work_items.joined([*parts, Answers((), (), math.nan)], task)
    assert all(math.isnan(value) for value in metrics.values()), "some are not finite"


def test_a_fault_of_a_node_ends_the_search_and_another_one_is_the_items(monkeypatch):
    """What failed once is not done again: nobody may be named for what is not theirs."""
    reasons = list[str]()

    def item() -> WorkItem:
        try:
            yield lambda _: "the reference"  # type: ignore[arg-type, return-value]
        except (LoraxsError, RayTaskError) as fault:
            reasons.append(work_items.reason_of(fault))

    def get(_: Any) -> None:
        raise next(raised)

    monkeypatch.setattr(work_items.ray, "get", get)
    monkeypatch.setattr(work_items.ray, "wait", lambda pending, **_: (pending, []))
    pool: Any = SimpleNamespace(hosts=lambda: [object()])
    far = RayTaskError("advance", "", HomeError("On node 10.0.0.7: no space left.")).as_instanceof_cause()
    raised = iter([ClusterError("it has other rows than the study began with"), far])
    for kind in (ClusterError, HomeError):
        with pytest.raises(kind):
            work_items.map_over_hosts(pool, [item()], bool)
    assert reasons == []
    raised = iter([TrialDivergedError("not finite"), RayTaskError("advance", "", MemoryError("3 GiB"))])
    work_items.map_over_hosts(pool, [item(), item()], bool)
    assert reasons == ["not finite", "MemoryError: 3 GiB"]


# ---- the study's baselines -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [None, HOST_LOST[0](), RayTaskError("baselines", "", ValueError("unheard of"))])
def test_a_linear_model_that_failed_is_measured_again_and_else_nothing(fresh_home, monkeypatch, error):
    folder = study("s")
    constant, alone = Baseline("constant", {"accuracy": 0.5}, answer=0), Baseline("zero-shot", {"accuracy": 0.5})
    tfidf = Baseline("tfidf", {"accuracy": 0.7}, {"accuracy": 0.7}, applies=True)
    hopeless = tuple(Baseline(name, failed="too slow", applies=False) for name in ("tfidf", "features"))

    def stopped() -> None:
        raise SearchInterruptedError("stopped")

    def ask(verb: Any, on_loop_step: Any, begun: Any) -> Any:
        on_loop_step()
        if error is not None:
            raise error
        return begun

    host = SimpleNamespace(baselines=SimpleNamespace(remote=lambda task: [constant, tfidf]))
    actors: Any = SimpleNamespace(pool=None)
    folder.write_baselines((constant, *hopeless))
    assert StudyBaselines(folder, actors, folder.info.task).result(bool) == (constant, *hopeless), "nobody is asked"
    actors.pool = SimpleNamespace(host=lambda: host, ask=ask)
    before = (constant, Baseline("tfidf", failed="disk full", applies=True), alone)
    folder.write_baselines(before)
    found = {one.name: one for one in StudyBaselines(folder, actors, folder.info.task).result(bool)}
    assert (found["constant"], found["zero-shot"]) == (constant, alone)
    assert found["tfidf"].is_unmeasured if error else found["tfidf"] == tfidf
    assert ("unheard of" in found["tfidf"].failed) is isinstance(error, RayTaskError)
    folder.write_baselines(before)
    before = folder.baselines()
    monkeypatch.setattr(work_items.ray, "wait", lambda asked, timeout: ([], asked))
    StudyBaselines(folder, actors, folder.info.task).take()
    assert folder.baselines() == before, "they are still being measured"
    with pytest.raises(SearchInterruptedError):
        StudyBaselines(folder, actors, folder.info.task).result(stopped)
    assert folder.baselines() == before, "a resumed search measures them anew"


# ---- the untouched base ----------------------------------------------------------------------------------------------
ROWS = {"validation": 300, "test": 200}
_PAIRS = {"name": "pairs", "kind": "word-pairs", "text": "", "label": "", "labels": (), "validation_rows": 10}
_PAIRS |= {"settings": {"ask": "words", "answer": "pair"}, "metric": "exact_match", "metrics": ("exact_match",)}
PAIRS = replace(TASK, **_PAIRS, report_metric="loss", report_direction="minimize")
CONSTANT = Baseline("constant", {"exact_match": 0.1}, {"exact_match": 0.1}, answer="a b")


class Hosts:
    """Two hosts, asked one item after another, that answer every n-th row rightly.

    Args:
        every: Number of worked examples to that n; one that is missing cannot be asked.
        dies_after: Pieces until the driver is killed.
    """

    def __init__(self, every: dict[int, int], dies_after: int = 1000) -> None:
        self.every, self.left, self.loss = every, dies_after, 1.0
        self.asked, self.tasks = list[tuple[int, str, range]](), list[Task]()
        self.serve = SimpleNamespace(remote=self._serve)

    def _serve(self, work: Callable[[Hosts], Any], task: Task, spec: None, identity: Identity) -> Any:
        assert identity == Identity("base", "data")
        return work(self)

    def answer_without_adapter(self, split: str, rows: range, shots: int, task: Task) -> Any:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked.append((shots, split, rows))
        self.tasks.append(task)
        if shots not in self.every:
            raise TaskDataError("four examples do not fit")
        said = tuple("a b" if row % self.every[shots] == 0 else "" for row in rows)
        counts, losses = (2,) * len(rows), tuple(row * self.loss for row in rows)
        return Answers(said, ("a b",) * len(rows), sum(losses), 2 * len(rows), losses, counts, counts, seconds=1.0)


@pytest.fixture
def folder(fresh_home, monkeypatch):
    monkeypatch.setitem(KINDS._entries, WordPairs.name, WordPairs)
    made = study("s", task=PAIRS, promotion=PromotionRule())
    made.write_baselines([CONSTANT])
    return made


def alone(folder: StudyFolder, hosts: Hosts, task: Task = PAIRS) -> BaseModelBaseline:
    info = SimpleNamespace(identity=Identity("base", "data"), data=SimpleNamespace(num_rows=ROWS))
    actors: Any = SimpleNamespace(info=info, pool=SimpleNamespace(hosts=lambda: [1, 2]))
    return BaseModelBaseline(folder, actors, task, lambda items: do_all(items, hosts))


def test_validation_rows_choose_how_it_is_asked_and_it_answers_the_test_rows_once(folder):
    hosts = Hosts({0: 5, 4: 4})
    measured = alone(folder, hosts)
    assert not measured.is_measured
    measured.measure()
    assert {(shots, split) for shots, split, _ in hosts.asked} == {(0, "validation"), (4, "validation"), (4, "test")}
    assert len(hosts.asked) == 2 * 2 + 2, "each split in parts"
    assert all((task.report_metric, task.validation_rows) == (None, None) for task in hosts.tasks)
    constant, zero, four = folder.baselines() or ()
    assert constant == CONSTANT
    assert (zero.name, zero.validation_metrics["exact_match"], zero.test_metrics) == ("zero-shot", 0.2, {})
    assert (four.name, four.validation_metrics["exact_match"]) == ("4-shot", 0.5)
    assert four.test_metrics == {"exact_match": 0.25, "loss": pytest.approx(sum(range(200)) / 400)}
    assert (zero.seconds, four.seconds) == (2.0, 4.0)
    rows = ScoredRows.from_bytes(folder.confirmed.base_rows_path.read_bytes())
    assert (rows.predictions[:5].tolist(), len(rows.labels)) == (["a b", "", "", "", "a b"], 200)
    np.testing.assert_array_equal(rows.losses, np.arange(200, dtype=np.float32))
    assert measured.is_measured
    before = len(hosts.asked)
    alone(folder, hosts).measure()
    assert len(hosts.asked) == before


def test_validation_rows_that_choose_are_few_and_spread_evenly(folder, monkeypatch):
    """Asking a base that writes costs more than a search; rows may be sorted."""
    monkeypatch.setitem(ROWS, "validation", 10_050)
    hosts = Hosts({0: 4, 4: 4})
    alone(folder, hosts).measure()
    assert (0, "test") in {(shots, split) for shots, split, _ in hosts.asked}, "of equal ways that with fewer examples"
    chosen = sorted(row for shots, split, rows in hosts.asked if (shots, split) == (0, "validation") for row in rows)
    assert len(chosen) <= BASE_MODEL_ROWS < 2 * len(chosen)
    assert len(set(np.diff(chosen))) == 1
    assert alone(folder, hosts).answered()[1] == sum(len(rows) for _, _, rows in hosts.asked), "not those in between"
    assert (chosen[0], chosen[-1] > 9_900) == (0, True)
    assert sum(len(rows) for _, split, rows in hosts.asked if split == "test") == ROWS["test"]


def test_what_was_answered_before_a_kill_is_not_asked_again(folder):
    killed, undisturbed = Hosts({0: 5, 4: 4}, dies_after=3), Hosts({0: 5, 4: 4})
    with pytest.raises(KeyboardInterrupt):
        alone(folder, killed).measure()
    assert not alone(folder, killed).is_measured
    alone(folder, undisturbed).measure()
    assert len(killed.asked) == 3
    rows = [(shots, split, row) for shots, split, rows in (*killed.asked, *undisturbed.asked) for row in rows]
    assert len(rows) == len(set(rows)) == 2 * 150 + ROWS["test"]
    assert (folder.baselines() or ())[2].test_metrics["exact_match"] == 0.25


def test_a_way_that_cannot_be_asked_says_why_and_a_base_that_could_not_be_is_asked_again(folder, caplog):
    hosts = Hosts({0: 5})
    alone(folder, hosts).measure()
    before = len(hosts.asked)
    alone(folder, hosts).measure()
    _, zero, four = folder.baselines() or ()
    assert (four.failed, four.validation_metrics) == ("four examples do not fit", {})
    assert zero.test_metrics["exact_match"] == 0.2
    assert "cannot be asked with 4 worked examples: four examples do not fit" in caplog.text
    assert len(hosts.asked) == before, "what has failed is not asked again"
    assert [shots for shots, _, _ in hosts.asked].count(4) == 1, "nor the rest of it"
    hosts = Hosts({4: 4})
    again = study("again", task=PAIRS, promotion=PromotionRule())
    again.write_baselines([CONSTANT])
    alone(again, hosts).measure()
    assert [each.failed != "" for each in (again.baselines() or ())[1:]] == [True, False]
    assert lacks_baseline(again)
    hosts.every[0] = 2
    assert not alone(again, hosts).is_measured
    alone(again, hosts).measure()
    _, zero, four = again.baselines() or ()
    assert (zero.failed, zero.test_metrics["exact_match"], four.test_metrics) == ("", 0.5, {})
    assert alone(again, hosts).is_measured
    assert not lacks_baseline(again)


def test_what_a_promotion_lacks_is_what_resuming_measures(folder):
    """A storage gets `baselines.json` first: a copy that is cut short lacks the rows, which are put together again."""
    assert lacks_baseline(folder), "it was never asked"
    hosts = Hosts({0: 5, 4: 4})
    alone(folder, hosts).measure()
    assert not lacks_baseline(folder)
    path, before = folder.confirmed.base_rows_path, len(hosts.asked)
    content = path.read_bytes()
    path.unlink()
    assert lacks_baseline(folder)
    assert not alone(folder, hosts).is_measured
    alone(folder, hosts).measure()
    assert path.read_bytes() == content
    assert len(hosts.asked) == before
    path.unlink()
    asks_less = replace(folder.info, name="c", promotion=PromotionRule(require="constant"))
    assert not lacks_baseline(StudyFolder.create(asks_less, "task: sst2\n"))
    folder.write_candidates([])
    assert not lacks_baseline(folder), "there is nothing to promote"


def test_a_base_without_a_finite_score_has_answered(folder):
    folder.write_baselines([CONSTANT, *(Baseline(f"{name}-shot", {"loss": math.nan}) for name in ("zero", "4"))])
    assert lacks_baseline(folder)
    by_loss, hosts = replace(PAIRS, metric="loss", direction="minimize", metrics=("loss",)), Hosts({0: 5, 4: 4})
    hosts.loss = math.nan
    assert not alone(folder, hosts, by_loss).is_measured
    alone(folder, hosts, by_loss).measure()
    assert alone(folder, hosts, by_loss).is_measured
    _, zero, _ = folder.baselines() or ()
    assert math.isnan(zero.test_metrics["loss"])
    assert not lacks_baseline(folder)
