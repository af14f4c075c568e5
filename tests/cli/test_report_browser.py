"""The report in a real browser, from disk and without a network: at two widths, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.browsers import CHROMIUM, WIDTHS, chromium, opened
from support.searched_studies import Tried, recorded_search, searched

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
def test_what_users_wrote_does_nothing_and_a_script_that_is_not_ours_is_not_run(browser, fresh_home):
    """The page's policy holds even if an escape were forgotten."""
    path = hostile()
    with opened(browser, path) as seen:
        assert (seen.errors, seen.requests) == ([], [])
        assert seen.page.evaluate("window.attacked") is None
        assert seen.page.locator("img").count() == seen.page.locator("svg a").count() == 0
        assert "onerror" in seen.page.locator("#failures").inner_text(), "it is shown as it was written"
    path.write_text(path.read_text().replace("</main>", "<script>window.attacked = 1</script></main>"))
    with opened(browser, path) as seen:
        assert seen.page.evaluate("window.attacked") is None
        assert any("Content Security Policy" in error for error in seen.errors)
