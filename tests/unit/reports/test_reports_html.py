"""The report as a file and its figures: all that was found is shown, and nothing in it runs but our scripts."""

from __future__ import annotations

import json
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from support.studies import TASK, Tried, confirm, recorded_search, searched, study
from support.toys import adapter

import loraxs_search
from loraxs_search import figures
from loraxs_search.log.events import TrialEnded
from loraxs_search.records.adapter import ClassReport, ClassScores, Sample
from loraxs_search.records.search import Baseline, OperatingPoint, PromotionRule
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.reports.html.figures import FIGURES
from loraxs_search.reports.html.page import write_report
from loraxs_search.reports.html.summary import ReportFacts, summary
from loraxs_search.search_space.load import load_space
from loraxs_search.studies.folder import StudyFolder

PLOTLY_BYTES = 4_900_000
PRUNED, FAIL, RUNNING = TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
IS_CODE = ("script", "style")
NASTY = "</script><img src=x onerror=alert(1)><b>{{ 7 * 7 }}$x_1$"


def test_each_figure_comes_from_python_by_name_and_shows_every_trial():
    folder = recorded_search("s", 40)
    folder.write_baselines([Baseline("constant", {"accuracy": 0.2}), Baseline("<b>mine", {"accuracy": 0.7})])
    drawn = figures("s")
    assert list(drawn) == [
        *("learning_curves", "quality_and_bytes", "history", "importances"),
        *("slice_rank", "slice_learning_rate", "slice_target_modules"),
    ]
    curves = {trace.name: trace for trace in drawn["learning_curves"].data if trace.mode != "lines"}
    points = [y for name, trace in curves.items() if not name.startswith("best") for y in trace.y if y is not None]
    assert sorted(points) == sorted(report.metrics["accuracy"] for report in folder.journal().reports)
    assert curves["stopped early"].line.color == "#98a1ab"
    levels = [trace for trace in drawn["learning_curves"].data if trace.mode == "lines"]
    assert [(trace.name, *trace.y) for trace in levels] == [("constant", 0.2, 0.2), ("&lt;b&gt;mine", 0.7, 0.7)]
    assert levels[0].line.dash != levels[1].line.dash

    front = next(trace for trace in drawn["quality_and_bytes"].data if trace.name == "front")
    assert list(front.x) == sorted(front.x)
    assert list(front.y) == sorted(front.y)
    assert len(front.x) > 1

    complete = [record for record in folder.journal().records.values() if record.state is TrialState.COMPLETE]
    scores = [record.reports[-1].metrics["accuracy"] for record in complete]
    trials, so_far = drawn["history"].data
    assert (list(trials.x), list(trials.y)) == ([int(record.trial_id) for record in complete], scores)
    assert list(so_far.y) == [max(scores[: count + 1]) for count in range(len(scores))]
    assert list(drawn["slice_rank"].data[0].y) == scores
    assert list(drawn["slice_rank"].layout.xaxis.ticktext) == ["4", "8", "16"]
    assert drawn["slice_learning_rate"].layout.xaxis.type == "log"


def test_where_the_finalist_is_sure_is_drawn_of_the_test_rows():
    folder = searched("s", [Tried({}, 0.8)])
    point = OperatingPoint(0.9, 0.75, 500, 0.5, (0.4, 0.6), 0.92, (0.85, 0.96))
    confirm(folder, "00000", [0.79], [0] * 100, [0] * 100, operating_points=(point,))
    assert "accuracy_over_coverage" not in figures("s"), "its answers have no probability"
    sure = np.linspace(1.0, 0.5, 100)
    rows = ScoredRows.of([0] * 100, [0] * 50 + [0, 1] * 25, confidences=sure.tolist())
    folder.confirmed.rows_path("00000").write_bytes(rows.to_bytes())
    drawn = figures("s")
    curve, marks = drawn["accuracy_over_coverage"].data
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0.2, 1.0, 1.0, 0.75)
    assert (marks.x, marks.y, marks.text) == ((0.5,), (0.92,), ("0.9",))
    assert (marks.error_y.array[0], marks.error_y.arrayminus[0]) == pytest.approx((0.04, 0.07))
    bins, _ = drawn["reliability"].data
    assert (sum(map(int, bins.text)), bins.x[-1], bins.y[-1]) == (100, pytest.approx(sure[:6].mean()), 1.0)


def test_the_best_is_on_top_where_less_is_better():
    for name, direction in (("more", "maximize"), ("less", "minimize")):
        task = replace(TASK, report_metric="loss", report_direction=direction)
        searched(name, [Tried({}, 0.3, 100), Tried({}, 0.2, 200)], task=task)
    turned = [figures(name)["quality_and_bytes"].layout.yaxis.autorange for name in ("more", "less")]
    assert turned == [None, "reversed"]


def test_slices_show_each_complete_trial_few_values_side_by_side_and_long_labels_cut_and_apart():
    long = [f"query+value+key&dense{number}" for number in range(4)]
    tried = zip((16, "auto", 4, 8), (0.5, 0.6, 0.002, 0.5), long, strict=True)
    complete = [Tried({"rank": rank, "p": p, "long": name}, p) for rank, p, name in tried]
    searched("s", [*complete, Tried({"rank": 4, "stopped": "a"}, 0.1, state=TrialState.PRUNED)])
    axes = {name: plot.layout.xaxis for name, plot in figures("s").items() if name.startswith("slice")}
    assert axes.keys() == {"slice_rank", "slice_p", "slice_long"}, "no complete trial has the other parameter"
    assert figures("s")["slice_rank"].data[0].x == ("16", "auto", "4", "8")
    assert axes["slice_rank"].categoryarray == ("4", "8", "16", "auto")
    assert axes["slice_p"].ticktext == ("0.002", "0.5", "0.6")
    assert (len(axes["slice_long"].categoryarray), {*axes["slice_long"].ticktext}) == (4, {"query+value+key&amp;d…"})


class Page(HTMLParser):
    """The elements of a page, each with the text behind its start."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)  # which comes in pieces

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join("".join(said) for tag, _, said in self.elements if tag not in IS_CODE).split())

    @property
    def tables(self) -> dict[str, list[list[str]]]:
        """The rows of tables below their headings, by caption."""
        rows, found = list[list[str]](), dict[str, list[list[str]]]()
        for tag, attributes, said in self.elements:
            if tag == "span" and not attributes:
                rows = found["".join(said).strip()] = []
            elif tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append("".join(said).strip())
        return {caption: rows[1:] for caption, rows in found.items()}


def page_of(folder: StudyFolder) -> Page:
    return Page(write_report(folder).read_text())


# ---- studies of all kinds --------------------------------------------------------------------------------------------
def tried(*params, score=0.5, states=(), **options) -> StudyFolder:
    """A study of trials with these params; each scores a little more than the one before."""
    states = states or (TrialState.COMPLETE,) * len(params)
    pairs = enumerate(zip(params, states, strict=True))
    trials = [Tried(own, score + i / 50, 1000 * i + 500, state=state) for i, (own, state) in pairs]
    return searched("s", trials, finished=RUNNING not in states, **options)


LESS = replace(TASK, report_metric="loss", report_direction="minimize")
RANKS = [{"rank": i} for i in range(4)]
XS = [{"method": "lora-xs", "rank": 4, "scale": 0.1 * number, "sigma": True} for number in range(6)]
STUDIES = {
    "nothing tried": lambda: study("s"),
    "none complete": lambda: tried(*RANKS, states=(PRUNED, FAIL, RUNNING, RUNNING)),
    "all alike": lambda: searched("s", [Tried({"rank": 4, "scale": 1.0}, 0.8)] * 12),
    "several methods": lambda: tried(*XS, *[{"method": "lora", "rank": "auto"}] * 6),
    "less is better": lambda: tried(*({"learning_rate": 10.0**-i} for i in range(5)), task=LESS),
}


@pytest.mark.parametrize("make", STUDIES.values(), ids=STUDIES)
def test_every_study_has_a_report_and_each_figure_is_there_or_says_why_not(make):
    folder = make()
    drawn = [draw(ReportFacts.of(folder)) for _, draw in FIGURES.values()]
    assert len(drawn) == 6
    assert all(says.endswith(".") for says, _ in drawn)
    page = page_of(folder)
    names = {name for _, plots in drawn for name in plots}
    assert {attributes["data-figure"] for attributes in page.named("div") if "data-figure" in attributes} == {
        f"figure-{name}" for name in names
    }
    assert all(" ".join(says.split()) in page.text or plots for says, plots in drawn)
    if make is STUDIES["nothing tried"]:
        assert len(write_report(folder).read_text()) < 30_000, "without plotly's script"


# ---- the file --------------------------------------------------------------------------------------------------------
def test_a_page_fetches_nothing_and_has_the_script_once():
    folder = recorded_search("s", 30)
    path = write_report(folder)
    assert path == folder.path / "report.html"
    content = path.read_text()
    page = Page(content)
    assert content.startswith("<!DOCTYPE html>\n<html lang=")
    assert not [each for _, each, _ in page.elements if "src" in each]
    assert [each["href"] for each in page.named("link")] == ["data:,"]
    assert {each["href"][0] for each in page.named("a")} == {"#"}
    assert len([each for each in page.named("script") if "type" not in each]) == 2, "plotly's and ours"
    (policy,) = (each["content"] for each in page.named("meta") if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == 2
    assert len(page.named("table")) == 6  # baselines, first and all trials, cost, failures, settings
    assert (len(page.named("h1")), len(page.named("h2"))) == (1, 10)
    targets = {each["href"] for each in page.named("a")}
    assert targets <= {f"#{each['id']}" for _, each, _ in page.elements if "id" in each}


def test_a_study_of_a_thousand_trials_stays_small():
    size = write_report(recorded_search("s", 1000)).stat().st_size
    assert size < 8_000_000
    assert size - PLOTLY_BYTES < 1_500_000, "what a trial takes"


def test_texts_of_users_stay_texts():
    """Everything that users write is an attack."""
    task = replace(TASK, name=NASTY, labels=(NASTY, "b"))
    tried = [Tried({"target_modules": f"{NASTY}{i % 7}", "rank": 4 + i}, 0.5 + i / 40) for i in range(12)]
    folder = searched("s", [*tried, Tried({"target_modules": NASTY}, 0.1, state=RUNNING)], task=task, space=NASTY)
    folder.journal().append(TrialEnded(trial_id="00012", state=FAIL, reason=NASTY))
    folder.write_baselines([Baseline(NASTY, {task.metric: 0.4}, failed=NASTY)])
    confirm(folder, "00011", [0.9])
    page = page_of(folder)
    assert page.named("img") == page.named("b") == []
    assert NASTY in page.text, "as it was written, braces too"
    data = ["".join(said) for _, attributes, said in page.elements if attributes.get("type") == "application/json"]
    assert any("&lt;img" in each for each in data)
    assert not any("<" in each or "<img" in json.dumps(json.loads(each)) for each in data), "plotly reads tags"


def of(folder):
    return summary(ReportFacts.of(folder))


# ---- found, and against what -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("right", "beats"), [(39, True), (33, False), (20, False)])
def test_the_rule_judges_the_finalist_and_a_decision_says_the_same(store_uri, right, beats):
    folder = searched("s", [Tried({"rank": 4}, 0.8)], promotion=PromotionRule())
    adapter(folder.adapter_path("00000"), "00000", task=TASK, study="s")
    labels = [0, 1] * 20
    confirm(folder, "00000", [0.79, 0.77], [y if row < right else 1 - y for row, y in enumerate(labels)], labels)
    tfidf = (*map(float, labels[:30]), *(1.0 - y for y in labels[30:]))
    linear = [Baseline(n, {}, {"accuracy": 0.75}, test_answers=tfidf, test_rows="test") for n in ("tfidf", "features")]
    folder.write_baselines([Baseline("constant", {}, {"accuracy": 0.5}, answer=0), *linear])
    folder.write_candidates([replace(one, baselines=folder.baselines()) for one in folder.candidates()])
    said = of(folder)
    assert (
        said.found == f"The finalist, trial 00000, reaches accuracy {right / 40:.4f} on the test rows, in 1,000 bytes."
    )
    sentence = said.verdict.removeprefix("By the rule of promotion: ").removesuffix(".")
    assert ("significant (" in sentence) is beats
    assert said.opening == ((said.found, said.verdict) if beats else (said.verdict, said.found))
    notes = {label: note for label, _, note in said.numbers}
    assert notes["mean over seeds"] == "± 0.0141, 2 seeds, validation rows"
    decision = loraxs_search.promote("s", tracking_uri=store_uri)
    assert decision.promoted is beats
    assert decision.reasons[-1] == f"there was no champion; {sentence}"


def test_before_the_end_the_best_trial_counts_by_validation_rows():
    task = replace(TASK, validation_rows=500)
    folder = searched("s", [Tried({}, 0.8), Tried({}, 0.9, state=TrialState.RUNNING)], task=task, finished=False)
    folder.write_baselines([Baseline("constant", {"accuracy": 0.85}, {"accuracy": 0.1})])
    said = of(folder)
    assert "best so far, trial 00000, reaches accuracy 0.8000 on at most 500 validation rows" in said.found
    assert "0.0500 worse than constant (0.8500)" in said.verdict
    assert "1 of 2 trials ended, 1 begun, 0 to come" in said.notes[0]


def test_where_less_is_better_a_lower_loss_beats_and_without_a_score_nothing_was_found():
    task = replace(TASK, report_metric="loss", report_direction="minimize")
    folder = searched("s", [Tried({}, 0.3), Tried({}, 0.2)], task=task, finished=False)
    folder.write_baselines([Baseline("zero-shot", {"loss": 0.5}), Baseline("tfidf", {"accuracy": 0.9})])
    said = of(folder)
    assert said.verdict == "It beats every baseline on the validation rows; the nearest, zero-shot (0.5000), by 0.3000."
    assert said.opening == (said.found, said.verdict)
    none = of(searched("none", [Tried({}, 0.5, state=TrialState.FAIL)]))
    assert (none.found, none.verdict) == ("No trial has a score: nothing was found.", "")


def test_why_there_is_no_finalist_is_said():
    folder = searched("s", [Tried({}, 0.8)], promotion=PromotionRule(max_bytes=999))
    confirm(folder, "00000", [0.79])
    assert "00000 is out: it stores 1,000 bytes, more than max_bytes=999" in of(folder).opening[-1]


def test_a_class_that_is_never_answered_is_named(monkeypatch):
    folder = searched("s", [Tried({}, 0.8)])
    confirm(folder, "00000", [0.79], answers=[1, 1, 1, 0], labels=[1, 1, 1, 1])
    scores = (ClassScores("Law", 4, None, 0.0, 0.0), ClassScores("News", 3, 0.4, 1.0, 0.6))
    report = ClassReport(scores, ((0, 4), (0, 3)), (Sample("a <b> text", "Law", "News"),))
    facts = replace(ReportFacts.of(folder), by_class=report)
    assert summary(facts).opening[-1] == "It never answers Law."
    shown = [
        [["Law", "4", "", "0.0000", "0.0000"], ["News", "3", "0.4000", "1.0000", "0.6000"]],
        [["Law", "0", "4"], ["News", "0", "3"]],
        [["a <b> text", "Law", "News"]],
    ]
    for confusion, tables in ((report.confusion, shown), ((), shown[::2])):  # rows of several classes have none
        facts = replace(facts, by_class=replace(report, confusion=confusion))
        monkeypatch.setattr(ReportFacts, "of", staticmethod(lambda _, facts=facts: facts))
        found = page_of(folder).tables.items()
        assert [rows for caption, rows in found if "test rows" in caption or "class" in caption] == tables


def test_times_are_summed_by_how_trials_ended_and_failures_grouped_by_reason_the_most_frequent_first():
    """They report every 10 of 30 steps, each step a tenth of a second of a device."""
    folder = searched("s", [Tried({}, 0.8), Tried({}, 0.6, state=PRUNED)], max_steps=30)
    times = {row[0]: row[1:3] for row in list(page_of(folder).tables.values())[-2]}
    assert times == {"complete": ["1", "3.0 s"], "stopped early": ["1", "1.0 s"], "all": ["2", "4.0 s"]}
    folder = recorded_search("many", 120)
    rows = page_of(folder).tables["What failed, and why."]
    assert [row[0] for row in rows] == ["trial", "refit"]
    assert rows[0][2] == "its loss must be finite, but is nan at step 12"
    failed = [r.trial_id for r in folder.journal().records.values() if r.state is FAIL]
    assert rows[0][3].startswith(", ".join(failed[:3]))


def test_the_command_to_repeat_it_has_the_overrides():
    space = load_space("movie_reviews", overrides=["search.trials=24", "parameters.rank={choice: [4, 8]}"])
    folder = searched("s", [Tried({}, 0.8)], space=space.text)
    object.__setattr__(folder.info, "space_source", space.source)
    words = f"loraxs-search launch {space.source} --set search.trials=24 --set 'parameters.rank={{choice: [4, 8]}}'"
    assert f"{words} --name s-again" in unescape(write_report(folder).read_text())
