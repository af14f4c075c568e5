"""The report in a real browser, from disk and without a network: at two widths, light and dark."""

from __future__ import annotations

import itertools
from html import escape
from pathlib import Path

import pytest
from support.browsers import CHROMIUM, WIDTHS, chromium, opened
from support.searched_studies import Tried, confirm, recorded_search, searched

from loraxs_search.log.events import TrialEnded
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.html.page import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium"),
]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ATTACK = "</script><img src=x onerror='window.attacked = 1'><a href='javascript:alert(1)'>here</a>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a search of 60 trials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(tmp_path_factory.mktemp("home")))
        return write_report(recorded_search("reviews", 60))


def hostile() -> Path:
    tried = [Tried({"target_modules": f"{ATTACK}{i % 7}", "rank": 4 + i}, 0.5 + i / 40) for i in range(12)]
    folder = searched("hostile", [*tried, Tried({"target_modules": ATTACK}, 0.1, state=TrialState.RUNNING)])
    folder.journal().append(TrialEnded(trial_id="00012", state=TrialState.FAIL, reason=ATTACK))
    return write_report(folder)


def test_the_report_opens_everywhere_without_errors_and_without_scrolling_sideways(browser, report, tmp_path):
    grounds = {}
    for width in WIDTHS:
        for theme in ("light", "dark"):
            with opened(browser, report, width, theme) as seen:
                seen.page.screenshot(path=str(tmp_path / f"{width}-{theme}.png"), full_page=True)
                assert (seen.errors, seen.requests) == ([], []), (width, theme)
                assert seen.page.evaluate(OVERFLOW) == 0, (width, theme)
                assert seen.page.locator(".plot .main-svg").count() >= 11
                grounds[theme] = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
                text = seen.page.evaluate("getComputedStyle(document.querySelector('.plot .xtick text')).fill")
                assert text not in (grounds[theme], "rgb(107, 118, 132)"), "the theme's colour, not the figure's own"
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 22, 25)"}


@pytest.mark.long(part="browser")
def test_at_1280_pixels_the_headline_and_every_column_are_seen(browser, fresh_home):
    """Of a search of five parameters, whose last column is the reason."""
    drawn = [
        {"rank": 4 << i % 3, "learning_rate": 1 / (601 + i), "head_learning_rate": 1 / (701 + i)} for i in range(9)
    ]
    modules = {"target_modules": "all-linear", "warmup_ratio": 0.05}
    tried = [Tried({**params, **modules}, 0.8 - i / 90, 57_600, 3_072) for i, params in enumerate(drawn)]
    more = [Tried({**drawn[0], "target_modules": "attention", "warmup_ratio": 0.1}, 0.5, state=TrialState.RUNNING)]
    folder = searched("wide", [*tried, *more])
    reason = "ASHA stopped it at step 10: 0.5 is not among the best 1/2 that reached this step"
    folder.journal().append(TrialEnded(trial_id="00009", state=TrialState.PRUNED, reason=reason))
    confirm(folder, "00000", [0.8, 0.79, 0.81], [0, 1] * 10, [0, 1] * 10)
    with opened(browser, write_report(folder)) as seen:
        boxes = [it.bounding_box() for it in seen.page.locator("header > *, #summary > *").all()]
        assert all(one["y"] + one["height"] <= other["y"] for one, other in itertools.pairwise(boxes))
        columns = seen.page.locator("#leaderboard thead th").all_inner_texts()
        assert {"validation accuracy", "test accuracy", "wall s", "reason"} < set(columns)
        assert seen.page.locator("#leaderboard .scroll").evaluate("it => it.scrollWidth - it.clientWidth") == 0
        assert seen.page.get_by_text(reason).bounding_box()["width"] >= 200


@pytest.mark.long(part="browser")
def test_all_trials_can_be_unfolded_and_the_page_still_does_not_scroll_sideways(browser, report):
    with opened(browser, report, "narrow") as seen:
        seen.page.get_by_text("All 60 trials", exact=True).click()
        seen.page.get_by_text("The space, as it was searched").click()
        assert seen.page.locator(".tall tbody tr").count() == 60
        assert seen.page.evaluate(OVERFLOW) == 0


@pytest.mark.long(part="browser")
def test_it_works_in_the_frame_of_an_artifact_viewer(browser, report, tmp_path):
    """As MLflow shows HTML: a frame of a foreign origin, which may run scripts and nothing else."""
    viewer = tmp_path / "viewer.html"
    content = escape(report.read_text())
    viewer.write_text(f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{content}"></iframe>')
    with opened(browser, viewer) as seen:
        frame = seen.page.frame_locator("iframe")
        frame.get_by_role("link", name="Quality against bytes").click()
        frame.locator("#quality_and_bytes .main-svg").first.wait_for()
        assert seen.errors == []


@pytest.mark.long(part="browser")
def test_what_users_wrote_does_nothing(browser, fresh_home):
    with opened(browser, hostile()) as seen:
        assert (seen.errors, seen.requests) == ([], [])
        assert seen.page.evaluate("window.attacked") is None
        assert seen.page.locator("img").count() == 0
        assert seen.page.locator("svg a").count() == 0, "labels of figures are no links"
        assert "onerror" in seen.page.locator("#failures").inner_text(), "it is shown as it was written"


@pytest.mark.long(part="browser")
def test_a_script_that_is_not_ours_is_not_run(browser, report, tmp_path):
    """The page's policy holds even if an escape were forgotten."""
    attacked = tmp_path / "report.html"
    attacked.write_text(report.read_text().replace("</main>", "<script>window.attacked = 1</script></main>"))
    with opened(browser, attacked) as seen:
        assert seen.page.evaluate("window.attacked") is None
        assert any("Content Security Policy" in error for error in seen.errors)
