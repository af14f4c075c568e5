"""The report as a file: every kind of study has one, it is small enough, and nothing in it runs but our scripts."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support.searched_studies import Tried, confirm, recorded_search, searched
from support.studies import TASK, study

from loraxs_search.log.events import TrialEnded
from loraxs_search.records.search import Baseline
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.html.figures import FIGURES
from loraxs_search.reports.html.page import write_report
from loraxs_search.reports.html.summary import ReportFacts
from loraxs_search.studies.folder import StudyFolder

PLOTLY_BYTES = 4_900_000
PRUNED, FAIL, RUNNING = TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
NASTY = "</script><img src=x onerror=alert(1)><b>{{ 7 * 7 }}$x_1$"


class Parsed(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.data: list[str] = []  # of figures
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if dict(attrs).get("type") == "application/json":
            self._inside = "json"
            self.data.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "json":
            self.data[-1] += data  # which comes in pieces
        elif self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(folder: StudyFolder) -> Parsed:
    return Parsed(write_report(folder).read_text())


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
def test_every_study_has_a_report_and_each_figure_is_there_or_says_why_not(make, fresh_home):
    folder = make()
    drawn = [draw(ReportFacts.of(folder)) for _, draw in FIGURES.values()]
    assert len(drawn) == 5
    assert all(says.endswith(".") for says, _ in drawn)
    page = parsed(folder)
    names = {name for _, plots in drawn for name in plots}
    assert {attributes["data-figure"] for attributes in page.named("div") if "data-figure" in attributes} == {
        f"figure-{name}" for name in names
    }
    assert all(" ".join(says.split()) in page.text or plots for says, plots in drawn)
    if make is STUDIES["nothing tried"]:
        assert len(write_report(folder).read_text()) < 30_000, "without plotly's script"


# ---- the file --------------------------------------------------------------------------------------------------------
def test_a_page_fetches_nothing_and_has_the_script_once(fresh_home):
    folder = recorded_search("s", 30)
    path = write_report(folder)
    assert path == folder.path / "report.html"
    content = path.read_text()
    page = Parsed(content)
    assert content.startswith("<!DOCTYPE html>\n<html lang=")
    assert not [each for tag, each in page.tags if "src" in each]
    assert [each["href"] for each in page.named("link")] == ["data:,"]
    assert {each["href"][0] for each in page.named("a")} == {"#"}
    assert len([each for each in page.named("script") if "type" not in each]) == 2, "plotly's and ours"
    (policy,) = (each["content"] for each in page.named("meta") if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == 2
    assert len(page.named("table")) == 6  # baselines, first and all trials, cost, failures, settings
    assert (len(page.named("h1")), len(page.named("h2"))) == (1, 9)
    targets = {each["href"] for each in page.named("a")}
    assert targets <= {f"#{each['id']}" for _, each in page.tags if "id" in each}


def test_a_study_of_a_thousand_trials_stays_small(fresh_home):
    size = write_report(recorded_search("s", 1000)).stat().st_size
    assert size < 8_000_000
    assert size - PLOTLY_BYTES < 1_500_000, "what a trial takes"


# ---- texts of users --------------------------------------------------------------------------------------------------
def hostile() -> StudyFolder:
    """A study in which everything that users write is an attack."""
    task = replace(TASK, name=NASTY, labels=(NASTY, "b"))
    tried = [Tried({"target_modules": f"{NASTY}{i % 7}", "rank": 4 + i}, 0.5 + i / 40) for i in range(12)]
    folder = searched("s", [*tried, Tried({"target_modules": NASTY}, 0.1, state=RUNNING)], task=task, space=NASTY)
    folder.journal().append(TrialEnded(trial_id="00012", state=FAIL, reason=NASTY))
    folder.write_baselines([Baseline(NASTY, {task.metric: 0.4}, failed=NASTY)])
    confirm(folder, "00011", [0.9])
    return folder


def test_texts_of_users_stay_texts(fresh_home):
    folder = hostile()
    page = parsed(folder)
    assert page.named("img") == page.named("b") == []
    assert NASTY in page.text, "as it was written, braces too"
    for data in page.data:
        assert "<" not in data
        labels = json.dumps(json.loads(data))
        assert "<img" not in labels, "plotly reads tags in its labels"
    assert any("&lt;img" in data for data in page.data)
