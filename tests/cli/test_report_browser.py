"""The report in a real browser, from disk and without a network: at two widths, light and dark."""

from __future__ import annotations

import pytest
from support.browsers import CHROMIUM, WIDTHS, chromium, opened
from support.searched_studies import recorded_search

from loraxs_search.reports.html.page import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium"),
]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


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
    report.write_text(report.read_text().replace("</main>", "<script>window.attacked = 1</script></main>"))
    with opened(browser, report) as seen:  # a script that is not ours is not run, even if an escape were forgotten
        assert seen.page.evaluate("window.attacked") is None
        assert any("Content Security Policy" in error for error in seen.errors)
