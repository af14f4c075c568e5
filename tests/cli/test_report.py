"""`report` and `compare` from the command line, on studies that were never run; the report in a real browser."""

from __future__ import annotations

import json

import pytest
from support.browsers import CHROMIUM, WIDTHS, chromium, opened
from support.studies import Tried, confirm, recorded_search, searched

from loraxs_search.reports.html.page import write_report

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_it_is_written_where_it_is_asked_to_or_refused(say, fresh_home, tmp_path):
    folder = recorded_search("reviews", 12)
    said = say("report", "reviews", "--output", str(tmp_path / "new" / "r.html"))
    assert said.ok.strip() == str(tmp_path / "new" / "r.html")
    assert (tmp_path / "new" / "r.html").is_file()
    assert not (folder.path / "report.html").exists()
    assert say("report", "reviewz").is_error(1, "must be one of: reviews, but got 'reviewz'")
    for path in ("/proc/r.html", "/proc/no/folder/r.html", f"/{'x' * 300}/r.html"):
        assert say("report", "reviews", "--output", path).is_error(1, "must be writable")
    assert say("report").code == 2


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium")
def test_the_report_opens_everywhere_without_errors_and_without_scrolling_sideways(fresh_home, tmp_path):
    """From disk and without a network: at two widths, light and dark."""
    report, grounds = write_report(recorded_search("reviews", 60)), {}
    with chromium() as browser:
        for width, theme in ((width, theme) for width in WIDTHS for theme in ("light", "dark")):
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


# ---- compare ---------------------------------------------------------------------------------------------------------
def test_a_comparison_has_a_line_a_group_and_all_numbers_in_json(say, fresh_home):
    xs = searched("xs", [Tried({"rank": 4}, 0.7, 500, 50), Tried({"rank": 8}, 0.8, 1000, 100)])
    lora = searched("lora", [Tried({"rank": 4}, 0.8, 10_000, 1000)] * 2, space="method: lora\n")
    confirm(xs, "00001", [0.8, 0.7, 0.75], [0] * 40, [0, 1] * 20)
    confirm(lora, "00000", [0.8, 0.81, 0.79], [0, 1] * 20, [0, 1] * 20)
    said = say("compare", "xs", "lora")
    heading, first, second = said.ok.splitlines()
    columns = "method  trials  steps  best  accuracy over seeds  test accuracy  gain  p  by  R  bytes"
    assert heading.split() == columns.split()
    assert first.split()[:6] == ["lora-xs", "2", "of", "2", "40", "xs/00001"]
    assert first.split()[6:11] == ["0.8000", "0.7500", "±", "0.0500", "0.5000"]
    assert first.split()[11:] == ["-", "-", "-", "100", "1,000"]
    assert second.split()[11:] == ["+0.5000", "1.91e-06", "rows", "1,000", "10,000"]
    assert "note: 2 trials of each group are few: " in said.err
    assert "no importances of xs: they need " in said.err
    comparison = json.loads(say("compare", "xs", "lora", "--by", "rank", "--against", "8", "--json").ok)
    assert [(group["value"], group["num_trials"]) for group in comparison["groups"]] == [(8, 1), (4, 3)]
    assert (comparison["budget"], comparison["studies"]) == (1, {"xs": "finished", "lora": "finished"})
    assert comparison["notes"]
    assert say("compare", "xs", "--by", "rnk").is_error(2, "must be one of: rank, method, study, but got 'rnk'.")


def test_what_a_seed_gives_back_is_counted_apart(say, fresh_home):
    searched("s", [Tried({"method": "vera"}, 0.7, 5000, without_projection=900), Tried({}, 0.7)])
    heading, vera, own = say("compare", "s").ok.splitlines()[:3]
    assert "bytes  learnt bytes" in heading
    assert vera.split()[-2:] == ["5,000", "900"]
    assert own.split()[-2:] == ["1,000", "-"]
